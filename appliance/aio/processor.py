"""The features of this machine's processor."""


def aes_is_fast() -> bool:
    """Whether the processor has AES instructions, so that AES-GCM is the better choice."""
    try:
        with open("/proc/cpuinfo", encoding="latin-1") as file:
            for line in file:
                if line.startswith(("flags", "Features")):
                    return " aes" in line
    except OSError:
        pass
    return False
