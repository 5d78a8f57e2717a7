"""Counts visits in the database; `db` is the name of a sandbox on the other network."""
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def count_a_visit():
    """Redis takes a command in a line, and answers `:N`."""
    with socket.create_connection(("db", 6379), timeout=5) as database:
        database.sendall(b"INCR visits\r\n")
        return int(database.makefile().readline().removeprefix(":"))


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            status, text = 200, f"visit {count_a_visit()}\n"
        except OSError as error:
            status, text = 503, f"no database: {error}\n"
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


class Server(ThreadingHTTPServer):
    # `::` takes IPv4 as well.
    address_family = socket.AF_INET6


if __name__ == "__main__":
    Server(("::", 8000), Page).serve_forever()
