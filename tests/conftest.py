"""For all tests: a run started in the background may ignore Ctrl-C, and its children inherit that; tests of interrupts need it heeded."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
