"""Serves moto on a free port of the loopback interface, which it prints, until its input ends.

Whoever starts it holds the other end of its input, so that it ends with them, however they end.
"""

import os
import sys

from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
os._exit(0)
