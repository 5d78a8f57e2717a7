"""A seccomp filter as containers have one: `refusing.py CALL=ERRNO[:MASK]... -- COMMAND`.

Each CALL fails with ERRNO; with MASK (hexadecimal) only where its first argument has one of these bits. The filter holds
for COMMAND and all that it starts.
"""
import ctypes
import errno
import os
import platform
import struct
import sys

NUMBERS = {
    "x86_64": {"clone": 56, "unshare": 272, "clone3": 435, "pivot_root": 155, "mount": 165},
    "aarch64": {"clone": 220, "unshare": 97, "clone3": 435, "pivot_root": 41, "mount": 40},
}
LOAD, JUMP_EQUAL, JUMP_SET, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NUMBER, FIRST_ARGUMENT = 0, 16
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2


def program(rules):
    """The instructions for rules of (call, errno, mask)."""
    out = []
    for call, error, mask in rules:
        number = NUMBERS[platform.machine()][call]
        verdict = [(RETURN, 0, 0, ERRNO | getattr(errno, error))]
        if mask:
            # The first argument's lower half, where the machine is little-endian.
            verdict = [(LOAD, 0, 0, FIRST_ARGUMENT), (JUMP_SET, 0, 1, mask), *verdict]
        out += [(LOAD, 0, 0, NUMBER), (JUMP_EQUAL, 0, len(verdict), number), *verdict]
    return [*out, (RETURN, 0, 0, ALLOW)]


def refuse(rules):
    """Have the rules hold for this process from now on."""
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program(rules))
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]

    filter_ = Program(len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    for words in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, MODE_FILTER, ctypes.byref(filter_), 0, 0)):
        if libc.prctl(*words):
            sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")


def parse(word):
    call, _, rest = word.partition("=")
    error, _, mask = rest.partition(":")
    return call, error, int(mask or "0", 16)


if __name__ == "__main__":
    end = sys.argv.index("--")
    refuse([parse(word) for word in sys.argv[1:end]])
    os.execvp(sys.argv[end + 1], sys.argv[end + 1:])
