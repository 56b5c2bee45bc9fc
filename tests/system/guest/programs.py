"""Python programs that run under a profile, or that change between profiles.

The scenarios of disuse.py and tracker.py start these programs, and examine their processes.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pace

# Each of these programs prints a line when it is ready, and continues when it receives a line.
PENDING = """
import os, sys
open('/proc/thread-self/attr/exec', 'w').write('exec ' + sys.argv[1])
print('ready', flush=True)
sys.stdin.readline()
os.execvp('sleep', ['sleep', '600'])
"""
FORKED_PENDING = """
import os, sys
open('/proc/thread-self/attr/exec', 'w').write('exec ' + sys.argv[1])
if os.fork():
    os._exit(0)
print(os.getpid(), flush=True)
sys.stdin.readline()
os.execvp('sleep', ['sleep', '600'])
"""
THREAD_PENDING = """
import os, sys, threading
def run():
    open('/proc/thread-self/attr/exec', 'w').write('exec ' + sys.argv[1])
    print('ready', flush=True)
    sys.stdin.readline()
    os.execvp('sleep', ['sleep', '600'])
threading.Thread(target=run).start()
threading.Event().wait()
"""
SLEEP = "import time; print('ready', flush=True); time.sleep(600)"
FORKS = """
import os, sys, time
print('ready', flush=True)
end = time.monotonic() + 300
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    if 'current' in sys.argv and open('/proc/self/attr/current').read().strip() == 'unconfined':
        open('/tmp/unconfined', 'w').close()
        os._exit(1)
"""
THREADS = """
import os, sys, threading, time
sys.setswitchinterval(1e-4)
end = time.monotonic() + 300
def confined():
    open('/proc/thread-self/attr/current', 'w').write('changeprofile ' + sys.argv[1])
    print('ready', flush=True)
    step()
def step():
    if time.monotonic() < end:
        if open('/proc/thread-self/attr/current').read().strip() == 'unconfined':
            open('/tmp/unconfined', 'w').close()
            os._exit(1)
        threading.Thread(target=step).start()
threading.Thread(target=confined).start()
threading.Event().wait()
"""
LEAVING_FORKS = """
import os, time
print('ready', flush=True)
end = time.monotonic() + 300
while time.monotonic() < end:
    if os.fork():
        open('/proc/self/attr/current', 'w').write('changeprofile unconfined')
        time.sleep(1)
        os._exit(0)
"""
LEAVING_THREADS = """
import sys, threading, time
sys.setswitchinterval(1e-4)
end = time.monotonic() + 300
def change(profile):
    open('/proc/thread-self/attr/current', 'w').write('changeprofile ' + profile)
def first():
    change(sys.argv[1])
    print('ready', flush=True)
    step()
def step():
    if time.monotonic() < end:
        threading.Thread(target=step).start()
        change('unconfined')
        time.sleep(1)
threading.Thread(target=first).start()
threading.Event().wait()
"""
# The execve of a leader cannot finish before its traced thread has ended. By then, the kernel has
# already selected the new profile of the leader.
UNFINISHED = """
import ctypes, os, sys, threading, time
SEIZE, CONT, TRACE_EXIT, ALL = 0x4206, 7, 0x40, 0x40000000
libc = ctypes.CDLL(None, use_errno=True)
def ptrace(request, tid, data=0):
    arguments = ctypes.c_long(tid), ctypes.c_void_p(0), ctypes.c_void_p(data)
    assert libc.ptrace(ctypes.c_long(request), *arguments) == 0, os.strerror(ctypes.get_errno())
read, write = os.pipe()
started, start = os.pipe()
child = os.fork()
if child == 0:
    def run():
        os.write(write, str(threading.get_native_id()).encode())
        time.sleep(600)
    threading.Thread(target=run, daemon=True).start()
    os.read(started, 1)
    os.execv(sys.argv[1], [sys.argv[1], '600'])
tid = int(os.read(read, 20))
ptrace(SEIZE, tid, TRACE_EXIT)
os.write(start, b'x')
os.waitpid(tid, ALL)
print(child, flush=True)
sys.stdin.readline()
ptrace(CONT, tid)
os.waitpid(tid, ALL)
time.sleep(600)
"""
# io_uring stores the credentials of the process under the first profile. Then the process changes
# to the second profile. For each line of input, the program opens a file with the stored
# credentials and prints the result.
STORED_CREDENTIALS = """
import ctypes, mmap, os, struct, sys
SETUP, ENTER, REGISTER, PERSONALITY, OPENAT, GETEVENTS = 425, 426, 427, 9, 18, 1
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    assert result >= 0, os.strerror(ctypes.get_errno())
    return result
def change(profile):
    open('/proc/self/attr/current', 'w').write('changeprofile ' + profile)
parameters = ctypes.create_string_buffer(120)
ring = call(SETUP, 4, parameters)
entries, results = struct.unpack_from('<II', parameters, 0)
head, tail, mask, _, _, _, array = struct.unpack_from('<7I', parameters, 40)
done, _, done_mask, _, _, done_array = struct.unpack_from('<6I', parameters, 80)
requests = mmap.mmap(ring, array + entries * 4, offset=0)
answers = mmap.mmap(ring, done_array + results * 16, offset=0x8000000)
table = mmap.mmap(ring, entries * 64, offset=0x10000000)
word = lambda memory, offset: struct.unpack_from('<I', memory, offset)[0]
change(sys.argv[1])
stored = call(REGISTER, ring, PERSONALITY, None, 0)
change(sys.argv[2])
path = ctypes.create_string_buffer(sys.argv[3].encode())
while True:
    last = word(requests, tail)
    index = last & word(requests, mask)
    request = struct.pack('<BBHiQQIIQHHiQQ', OPENAT, 0, 0, -100, 0, ctypes.addressof(path),
                          0, os.O_RDONLY, 0, 0, stored, 0, 0, 0)
    table[index * 64 : index * 64 + 64] = request
    struct.pack_into('<I', requests, array + index * 4, index)
    struct.pack_into('<I', requests, tail, last + 1)
    call(ENTER, ring, 1, 1, GETEVENTS, None, 0)
    first = word(answers, done)
    place = done_array + (first & word(answers, done_mask)) * 16
    print(struct.unpack_from('<Qi', answers, place)[1], flush=True)
    struct.pack_into('<I', answers, done, first + 1)
    if not sys.stdin.readline():
        break
"""
ZOMBIE = "import os; print('ready', flush=True); os._exit(0)"
DEAD_LEADER = """
import ctypes, threading, time
ready = threading.Event()
def run():
    ready.set()
    time.sleep(600)
threading.Thread(target=run).start()
ready.wait()
print('ready', flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


def state(pid):
    """Return the state letter of a process, for example Z for a zombie."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextlib.contextmanager
def program(code, *arguments, label=""):
    """Run a Python program, optionally under an AppArmor label. Yield its process when the program
    is ready.
    """
    start = (
        "import os, sys\n"
        "if sys.argv[1]: open('/proc/self/attr/exec', 'w').write('exec ' + sys.argv[1])\n"
        "os.execv(sys.executable, [sys.executable, '-S', '-c', *sys.argv[2:]])\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", start, label, code, *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        child.first_line = child.stdout.readline().strip()
        assert child.first_line, "the program did not start"
        yield child
    finally:
        # All processes of a chain are in one session. The signal is repeated, because any of the
        # processes may be forking.
        for _ in range(1000):
            try:
                os.killpg(child.pid, 9)
            except ProcessLookupError:
                break
        child.wait()
        child.stdin.close()
        child.stdout.close()


def label_of(pid):
    """Wait until a process has started its next program, and return its label."""
    pace.until(lambda: "python" not in Path(f"/proc/{pid}/comm").read_text(), "execve")
    return current(pid)


def current(pid):
    """Return the label of a process."""
    return Path(f"/proc/{pid}/attr/current").read_text().strip()


def continue_program(child):
    """Make a waiting program call execve."""
    child.stdin.write("\n")
    child.stdin.flush()
