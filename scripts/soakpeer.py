#!/usr/bin/env python3
"""One end of soak.py's traffic: a server of TCP and UDP, and a client of other ones'.

It is told what to do by lines of JSON on standard input and answers each by one, see [`Peer.obey`]. Bytes are the same at both ends
without being sent beforehand: position n of a stream with the seed s is byte (s + n) of one fixed block, round and round.
Whoever reads compares every byte with what must stand there, so that one that is lost, repeated, changed or out of
another connection shows; and a stream that ends must end where it was to end, in the way it was to end.
"""
import asyncio
import errno
import json
import random
import socket
import struct
import sys

BLOCK = random.Random(1).randbytes(1_048_573)
TWICE = BLOCK + BLOCK
CHUNK = 64 * 1024
HEAD = struct.Struct("!QIQQBBQf")
# Seconds that a connection may take beyond its own time.
PATIENCE = 90

# How a connection goes.
BOTH = 0  # both sides send at once; each says when it has no more
ASK = 1  # the client sends all and says so; then the server sends
TELL = 2  # the server sends all and says so; then the client sends
CLIENT_RESETS = 3  # as BOTH, but the client resets in the middle
SERVER_RESETS = 4
REFUSED = 5  # nobody listens there
FATES = ["both ways at once", "half-closed by the client", "half-closed by the server", "reset by the client", "reset by the server", "refused"]


class Wrong(Exception):
    """Something that must not be."""


def stream(seed, position, length):
    """What stands there."""
    at = (seed + position) % len(BLOCK)
    return TWICE[at:at + length]


async def send(writer, seed, count, seconds, most):
    """Send so many bytes, in so many seconds; but no more than `most` of them."""
    chunks = -(-count // CHUNK)
    every = -(-chunks // 20)
    for number in range(chunks):
        if number * CHUNK >= most:
            break
        if seconds and number % every == 0:
            await asyncio.sleep(seconds / -(-chunks // every))
        at = number * CHUNK
        writer.write(stream(seed, at, min(CHUNK, count - at, most - at)))
        await writer.drain()


async def receive(reader, seed, count, wait):
    """Read to the end, which must be after so many bytes."""
    await asyncio.sleep(wait)
    got = 0
    while data := await reader.read(4 * CHUNK):
        if data != stream(seed, got, len(data)):
            raise Wrong(f"other bytes than were sent, between {got} and {got + len(data)} of {count}")
        got += len(data)
    if got != count:
        raise Wrong(f"ended in order after {got} of {count} bytes")


def reset(writer):
    """End it with a reset, whatever is on its way."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class Side:
    """What either side does with a connection."""

    def __init__(self, reader, writer, head, is_client):
        self.reader, self.writer, self.is_client = reader, writer, is_client
        self.id, self.seed, up, down, self.fate, self.lazy, self.cut, self.seconds = head
        self.mine, self.theirs = (up, down) if is_client else (down, up)
        self.my_seed, self.their_seed = (self.seed, self.seed + 7919) if is_client else (self.seed + 7919, self.seed)
        self.resets = self.fate == (CLIENT_RESETS if is_client else SERVER_RESETS)
        # One after the other, each has half of the time.
        self.pace = self.seconds / 2 if self.fate in (ASK, TELL) else self.seconds
        self.speaks_second = self.fate == (TELL if is_client else ASK)

    async def send(self):
        await send(self.writer, self.my_seed, self.mine, self.pace, self.cut if self.resets else self.mine)
        if self.resets:
            # Without a byte to wait for, it is open for its time all the same.
            if self.mine == 0:
                await asyncio.sleep(self.seconds)
            reset(self.writer)
        else:
            self.writer.write_eof()

    async def receive(self):
        await receive(self.reader, self.their_seed, self.theirs, self.pace / 2 if self.lazy & (1 if self.is_client else 2) else 0)

    async def converse(self):
        """Do it; how it ended. What must not be is told as [`Wrong`]."""
        try:
            if self.speaks_second:
                await self.receive()
                await self.send()
            elif self.fate in (ASK, TELL):
                await self.send()
                await self.receive()
            else:
                await self.both()
            return "reset" if self.resets else "whole"
        except OSError as error:
            # The last is shutdown's word for it. (asyncio's own errors have no number.)
            is_reset = isinstance(error, (ConnectionResetError, BrokenPipeError)) or error.errno == errno.ENOTCONN
            if is_reset and self.fate in (CLIENT_RESETS, SERVER_RESETS):
                return "reset"
            raise Wrong(f"nobody wanted that: {error}") from None

    async def both(self):
        sending, receiving = asyncio.ensure_future(self.send()), asyncio.ensure_future(self.receive())
        try:
            if self.resets:
                await sending
            else:
                await asyncio.gather(sending, receiving)
                if self.fate in (CLIENT_RESETS, SERVER_RESETS):
                    raise Wrong("it was to be reset, and ended in order")
        finally:
            for task in (sending, receiving):
                task.cancel()
            # Both are looked at, so that none complains that nobody did.
            await asyncio.gather(sending, receiving, return_exceptions=True)


class Echo(asyncio.DatagramProtocol):
    """Sends back what it gets."""

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, sender):
        self.transport.sendto(data, sender)


class Answers(asyncio.DatagramProtocol):
    """Takes what comes back."""

    def __init__(self):
        self.came = asyncio.Queue()

    def datagram_received(self, data, _):
        self.came.put_nowait(data)

    def error_received(self, error):
        self.came.put_nowait(error)


class Peer:
    def __init__(self):
        # As server: what became of each connection by its id. As client: the same, with how it was to go.
        self.served, self.begun = {}, {}
        self.faults = []
        self.open = self.most_open = self.bytes = 0
        self.datagrams = self.datagrams_again = self.questions = 0

    def fault(self, what):
        self.faults.append(what)

    # As server

    async def serve(self, addresses, port):
        for address in addresses:
            await asyncio.start_server(self.accepted, address, port, limit=CHUNK, backlog=1024)
            datagrams = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
            if ":" in address:
                datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            datagrams.bind((address, port))
            await asyncio.get_running_loop().create_datagram_endpoint(Echo, sock=datagrams)

    async def accepted(self, reader, writer):
        head = None
        try:
            try:
                head = HEAD.unpack(await reader.readexactly(HEAD.size))
            except (asyncio.IncompleteReadError, ConnectionResetError):
                # Reset before the first bytes came; whether that was wanted, its client knows.
                return
            side = Side(reader, writer, head, False)
            self.served[side.id] = "open"
            self.served[side.id] = await asyncio.wait_for(side.converse(), 2 * side.seconds + PATIENCE)
        except (Wrong, OSError, asyncio.TimeoutError) as error:
            self.served[head[0]] = f"server: {str(error) or 'stuck'} ({FATES[head[4]]}, {head})"
        finally:
            writer.transport.abort() if not head or self.served[head[0]] != "whole" else writer.close()

    # As client

    async def load(self, about):
        """Connections, datagrams and questions, at random times in so many seconds."""
        chance = random.Random(about["seed"])
        first = about["first"]
        tasks = [self.connection(first + number, random.Random(chance.random()), about) for number in range(about["tcp"])]
        tasks += [self.conversation(number, random.Random(chance.random()), about) for number in range(about["udp"])]
        tasks += [self.question(random.Random(chance.random()), about) for _ in range(about["dns"])]
        # As gather's exceptions are not looked at one by one, none may be left to it.
        for error in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(error, BaseException):
                self.fault(f"{type(error).__name__}: {error}")

    @staticmethod
    def plan(chance, about):
        """How a connection goes."""
        fate = chance.choices(range(6), [40, 15, 15, 14, 14, 2])[0]
        size = lambda: chance.choices([0, int(2 ** chance.uniform(0, 22)), chance.randrange(16 << 20, 32 << 20)], [10, 88, 2])[0]
        up, down = size(), size()
        seconds = 0.0 if chance.random() < 0.3 else min(chance.expovariate(1 / about["life"]), 4 * about["life"], about["seconds"] / 4)
        resetter = up if fate == CLIENT_RESETS else down
        return fate, up, down, seconds, chance.randrange(4) if chance.random() < 0.2 else 0, chance.randrange(resetter + 1)

    async def connection(self, number, chance, about):
        fate, up, down, seconds, lazy, cut = self.plan(chance, about)
        # Half of them in bursts.
        last = max(0.0, about["seconds"] - 1.5 * seconds)
        at = chance.uniform(0, last)
        await asyncio.sleep(at - at % 5 if chance.random() < 0.5 else at)
        target = chance.choice(about["targets"])
        if fate == REFUSED and not target["refuses"]:
            fate = BOTH
        way = target["way"]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        writer = None
        try:
            if fate == REFUSED:
                return await self.refused(number, target)
            opened = asyncio.open_connection(target["host"], target["port"], limit=CHUNK)
            try:
                reader, writer = await asyncio.wait_for(opened, PATIENCE)
            except (OSError, asyncio.TimeoutError) as error:
                raise Wrong(f"not connected: {str(error) or 'stuck'}") from None
            head = (number, chance.randrange(1 << 31), up, down, fate, lazy, cut, seconds)
            writer.write(HEAD.pack(*head))
            # As the server will read it: a float of four bytes.
            side = Side(reader, writer, HEAD.unpack(HEAD.pack(*head)), True)
            outcome = await asyncio.wait_for(side.converse(), 2 * seconds + PATIENCE)
            self.begun[number] = (fate, way, outcome)
            self.bytes += up + down if outcome == "whole" else 0
        except (Wrong, OSError, asyncio.TimeoutError) as error:
            self.begun[number] = (fate, way, f"client: {str(error) or 'stuck'} ({up} up, {down} down, {seconds:.1f} s)")
        finally:
            self.open -= 1
            if writer:
                writer.transport.abort() if self.begun.get(number, "  ")[2] != "whole" else writer.close()

    async def refused(self, number, target):
        try:
            _, writer = await asyncio.wait_for(asyncio.open_connection(target["host"], target["port"] + 1), PATIENCE)
            writer.transport.abort()
            raise Wrong("connected to a port where nobody listens")
        except ConnectionRefusedError:
            self.begun[number] = (REFUSED, target["way"], "refused")

    async def conversation(self, number, chance, about):
        """Datagrams one after the other, each asked for again when nothing comes back."""
        await asyncio.sleep(chance.uniform(0, about["udp_seconds"]))
        target = chance.choice(about["targets"])
        loop = asyncio.get_running_loop()
        transport, answers = await loop.create_datagram_endpoint(Answers, remote_addr=(target["host"], target["port"]))
        try:
            for count in range(chance.randint(1, 12)):
                head = struct.pack("!QI", about["first"] + number, count)
                size = int(2 ** chance.uniform(0, 13)) if chance.random() < 0.8 else chance.randrange(1200)
                data = head + stream(number * 31 + count, 0, size)
                for again in range(5):
                    transport.sendto(data)
                    if await self.came_back(answers, data):
                        self.datagrams += 1
                        self.datagrams_again += again
                        break
                else:
                    raise Wrong(f"datagram {count} of {len(data)} bytes: no answer to five of it")
        except Wrong as error:
            self.fault(f"UDP {target['way']}: {error}")
        finally:
            transport.close()

    @staticmethod
    async def came_back(answers, data):
        end = asyncio.get_running_loop().time() + 3
        while (left := end - asyncio.get_running_loop().time()) > 0:
            try:
                came = await asyncio.wait_for(answers.came.get(), left)
            except asyncio.TimeoutError:
                return False
            if came == data:
                return True
            # An earlier one that was asked for twice.
            if isinstance(came, bytes) and (came[:8] != data[:8] or came[8:12] >= data[8:12]):
                raise Wrong(f"{len(came)} other bytes came back than the {len(data)} that were sent")
        return False

    async def question(self, chance, about):
        await asyncio.sleep(chance.uniform(0, about["udp_seconds"]))
        name, wanted = chance.choice(list(about["names"].items()))
        name = name.replace("*", str(chance.randrange(1 << 30)))
        loop = asyncio.get_running_loop()
        for again in range(3):
            try:
                found = sorted({found[4][0] for found in await loop.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
            except socket.gaierror as error:
                # A resolver that is too busy says EAI_AGAIN.
                if error.errno == socket.EAI_AGAIN and again < 2:
                    continue
                found = [] if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA) else [str(error)]
            break
        self.questions += 1
        if found != sorted(wanted):
            self.fault(f"DNS: {name} is {found}, not {wanted}")

    # What it is told

    async def obey(self, line):
        about = json.loads(line)
        if "serve" in about:
            await self.serve(about["serve"], about["port"])
            return {}
        if "load" in about:
            await self.load(about["load"])
            return {}
        report = {name: getattr(self, name) for name in ("served", "begun", "faults", "most_open", "bytes", "datagrams", "datagrams_again", "questions")}
        report["open"] = sum(what == "open" for what in self.served.values())
        return report

    async def main(self):
        reader = asyncio.StreamReader(limit=1 << 24)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            print(json.dumps(await self.obey(line)), flush=True)


if __name__ == "__main__":
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(Peer().main())
