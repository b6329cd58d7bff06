"""The SFTP server: a program of its own that runs as the user.

``server.py`` takes the packets apart and finds a request's row in a table; ``requests.py``,
``openssh_extensions.py`` and ``own_extensions.py`` hold the handlers; all of them share one
``Session``. A client waits for this program to start, so nothing here imports more than the
package's wire layer and what Python starts with: ``typing``, ``enum`` and ``re`` take longer to
import than Python takes to start.
"""
