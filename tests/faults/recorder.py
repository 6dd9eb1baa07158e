"""Keeps the rows that flow runs write, outside of what breaks: `python recorder.py`.

A pod runs this file alone, so it imports the standard library only. POST /rows stores one row, once
however often it is sent; GET /rows returns all of them in the order of their arrival.
"""

import json
import sqlite3
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TABLE = "CREATE TABLE IF NOT EXISTS rows (id TEXT PRIMARY KEY, arrived REAL, row TEXT)"
LOCK = threading.Lock()


class Recorder(BaseHTTPRequestHandler):
    """Answers for the table."""

    protocol_version = "HTTP/1.1"
    database: sqlite3.Connection

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"])).decode()
        with LOCK, self.database:
            self.database.execute(
                "INSERT OR IGNORE INTO rows VALUES (?, ?, ?)",
                (json.loads(text)["id"], time.time(), text),
            )
        self.answer("{}")

    def do_GET(self) -> None:
        with LOCK:
            found = self.database.execute("SELECT arrived, row FROM rows ORDER BY arrived")
            rows = [{**json.loads(row), "arrived": arrived} for arrived, row in found]
        self.answer(json.dumps(rows))

    def answer(self, text: str) -> None:
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def server(address: str, port: int, file: str) -> ThreadingHTTPServer:
    """A server that keeps its rows in a file."""
    Recorder.database = sqlite3.connect(file, check_same_thread=False)
    Recorder.database.execute(TABLE)
    return ThreadingHTTPServer((address, port), Recorder)


if __name__ == "__main__":
    server("0.0.0.0", 8080, "/data/rows.sqlite").serve_forever()  # noqa: S104
