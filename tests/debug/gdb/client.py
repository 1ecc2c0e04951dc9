"""A debugger of few words: raw packets over a socket, for tests that look at every byte."""

import contextlib
import socket


class Client:
    """Speaks to the server at ``port`` of this host, waiting for each acknowledgement."""

    def __init__(self, port, patience=20.0):
        self.socket = socket.create_connection(("127.0.0.1", port), patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def write(self, data):
        self.socket.sendall(data)

    def _more(self):
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the server hung up; unread: {self._buffer!r}")
        self._buffer += data

    def byte(self):
        """The next byte, which is no packet's."""
        while not self._buffer:
            self._more()
        first, self._buffer = self._buffer[:1], self._buffer[1:]
        return first

    def packet(self):
        """The next packet's data; acknowledgements before it are dropped, and it is acknowledged."""
        while b"#" not in self._buffer or len(self._buffer) < self._buffer.index(b"#") + 3:
            self._more()
        start, end = self._buffer.index(b"$"), self._buffer.index(b"#")
        assert self._buffer[:start].strip(b"+") == b"", self._buffer
        body, checksum = self._buffer[start + 1 : end], self._buffer[end + 1 : end + 3]
        assert int(checksum, 16) == sum(body) & 0xFF
        self._buffer = self._buffer[end + 3 :]
        self.write(b"+")
        return body

    def send(self, body):
        self.write(b"$%b#%02x" % (body, sum(body) & 0xFF))

    def __call__(self, body):
        """The answer to a packet."""
        self.send(body.encode() if isinstance(body, str) else body)
        return self.packet().decode("latin-1")

    def monitor(self, command):
        """The output of a monitor command."""
        self.send(b"qRcmd," + command.encode().hex().encode())
        text = b""
        while (body := self.packet()) != b"OK":
            assert body[:1] == b"O", body
            text += bytes.fromhex(body[1:].decode())
        return text.decode()

    def register(self, number):
        return int.from_bytes(bytes.fromhex(self(f"p{number:x}")), "little")

    def hung_up(self):
        """Wait for the server to close the connection."""
        with contextlib.suppress(ConnectionResetError):
            while self.socket.recv(65536):
                pass
        return True

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.close()
