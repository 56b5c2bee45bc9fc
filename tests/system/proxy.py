"""Simulates network faults with a TCP relay on the loopback interface."""

import contextlib
import socket
import threading
import time


class Proxy:
    """A relay to one port on this machine."""

    def __init__(self, to):
        self.to = to
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.mode = "forward"
        self.seconds = 0.0
        self.pairs = set()
        self.bytes = 0
        self.last = time.monotonic()
        self.ended = False
        self.stop = threading.Event()
        self.threads = []
        self.accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self):
        self.accepting.start()
        return self

    def __exit__(self, *_):
        self.ended = True
        self.stop.set()
        _shut(self.listener)  # Unlike close, shutdown wakes a thread that is blocked in accept.
        self.accepting.join()
        self.listener.close()
        self._cut()
        for thread in self.threads:
            thread.join()

    def forward(self):
        """Relay all data without a delay."""
        self.mode, self.seconds = "forward", 0.0

    def delay(self, seconds):
        """Delay all data from the server by a number of seconds."""
        self.mode, self.seconds = "forward", seconds

    def refuse(self):
        """Close all connections, and close each new connection immediately."""
        self.mode = "refuse"
        self._cut()

    def silence(self):
        """Keep the connections open but relay no data, as a broken network does."""
        self.mode = "silence"

    def sent(self):
        """Return the number of bytes that the clients have sent."""
        return self.bytes

    def idle(self):
        """Return the number of seconds since a client last sent data."""
        return time.monotonic() - self.last

    def open(self):
        """Return the number of open connections."""
        return len(self.pairs)

    def _cut(self):
        for pair in list(self.pairs):
            for item in pair:
                _shut(item)

    def _accept(self):
        while not self.ended:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.mode == "refuse":
                client.close()
                continue
            pair = (client, socket.create_connection(("127.0.0.1", self.to)))
            self.pairs.add(pair)
            thread = threading.Thread(target=self._serve, args=(pair,), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self, pair):
        client, server = pair
        back = threading.Thread(target=self._relay, args=(server, client), daemon=True)
        back.start()
        self._relay(client, server)
        back.join()
        client.close()
        server.close()
        self.pairs.discard(pair)

    def _relay(self, source, target):
        from_client = any(source is client for client, _ in list(self.pairs))
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                while self.mode == "silence" and not self.ended:
                    time.sleep(0.01)
                if from_client:
                    self.bytes += len(chunk)
                    self.last = time.monotonic()
                elif self.seconds:
                    self.stop.wait(self.seconds)
                target.sendall(chunk)
        _shut(source)
        _shut(target)


def _shut(one):
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
