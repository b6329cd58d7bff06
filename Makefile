# Everything that can be done with this tree; `make` alone lists it.
#
# A target first looks for the programs it uses. Run by root it installs the Debian packages that
# are missing; run by anyone else it prints the line that would, and stops.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check bench fuzz soak clean packages-python packages-demo packages-test packages-bench

help: ## show this list
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16

demo: packages-demo $(VENV)/runtime ## build a VPN on this machine, show a program two hops away, and see that it works
	@$(PY) -m tests.demo

test: packages-test check ## run every test, the real OpenSSH, Dropbear and PuTTY included
	$(PY) -m pytest -n 2 --dist loadgroup

check: $(VENV)/test ## look for mistakes without running anything: ruff and mypy --strict
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict

bench: packages-bench $(VENV)/test ## compare with OpenSSH, Dropbear and wireguard-go, side by side (ROWS=login,memory RUNS=5)
	@$(PY) -m tests.bench $(if $(ROWS),--rows $(ROWS)) $(if $(RUNS),--runs $(RUNS))

fuzz: packages-test $(VENV)/fuzz ## look for input that breaks a parser or a state machine (SECONDS=60)
	@$(PY) -m tests.fuzz --seconds $(or $(SECONDS),60) $(if $(KEEP),--keep)

soak: packages-test $(VENV)/test ## disturb a server, a link and a mount over and over, and see what is left (SECONDS=600 each)
	@$(PY) -m tests.soak --seconds $(or $(SECONDS),600)
	@$(PY) -m tests.links_soak --seconds $(or $(SECONDS),600)
	@$(PY) -m tests.mount_soak --seconds $(or $(SECONDS),600)
	@$(PY) -m tests.mount_soak --seconds $(or $(SECONDS),600) --behind

clean: ## remove everything that the other targets made in this tree
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environments: the first has what Culvert needs to run, the second what its tests need as well.
$(VENV)/runtime: pyproject.toml | packages-python
	$(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/test: $(VENV)/runtime
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

$(VENV)/fuzz: $(VENV)/test
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@

# Debian's packages, as COMMAND=PACKAGE or LIBRARY=PACKAGE.
DEMO_TOOLS := ip=iproute2 ping=iputils-ping iperf3=iperf3 \
	Xvfb=xvfb xauth=xauth xterm=xterm xwininfo=x11-utils import=imagemagick
TEST_TOOLS := $(DEMO_TOOLS) ssh=openssh-client sshd=openssh-server dropbear=dropbear-bin plink=putty-tools \
	tinyproxy=tinyproxy-bin microsocks=microsocks nft=nftables sysctl=procps curl=curl \
	busybox=busybox systemd-analyze=systemd fail2ban-regex=fail2ban \
	rsync=rsync git=git tmux=tmux mosh=mosh autossh=autossh ansible=ansible-core \
	tinysshd=tinysshd rclone=rclone lftp=lftp sshfs=sshfs automount=autofs fio=fio dbus-run-session=dbus-daemon gio=libglib2.0-bin /usr/lib/gvfs/gvfsd-sftp=gvfs-backends libssh.so.4=libssh-4 \
	xclock=x11-apps xset=x11-xserver-utils xinput=xinput xclip=xclip \
	xdotool=xdotool zenity=zenity glxinfo=mesa-utils \
	/usr/share/xcb/xproto.xml=xcb-proto /usr/lib/python3/dist-packages/Xlib=python3-xlib
# wireguard-go itself is fetched by tests/bench/wireguard.py.
BENCH_TOOLS := $(TEST_TOOLS) wg=wireguard-tools

packages-python: ; $(call install)
packages-demo: ; $(call install,$(DEMO_TOOLS))
packages-test: ; $(call install,$(TEST_TOOLS))
packages-bench: ; $(call install,$(BENCH_TOOLS))

# RUNLEVEL=1 keeps a package that brings a service from starting it.
define install
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing=' python3 python3-venv'; \
	for tool in $(1); do \
		command -v "$${tool%=*}" >/dev/null || [ -e "$${tool%=*}" ] || ldconfig -p | grep -qF "$${tool%=*} " \
			|| missing="$$missing $${tool#*=}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then \
		echo "Packages are missing. Please run: sudo apt-get install -y$$missing" >&2; exit 1; \
	fi; \
	echo "installing$$missing"; \
	apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive \
		apt-get install -y -qq --no-install-recommends $$missing >/dev/null
endef
