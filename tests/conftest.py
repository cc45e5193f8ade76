"""For all tests: a run that was started in the background may ignore Ctrl-C, and children inherit that; tests of interrupts need it heeded."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
