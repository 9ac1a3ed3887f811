"""What holds for all tests."""
import signal

# A shell without job control starts background jobs with SIGINT ignored, and so would be every process of a test.
signal.signal(signal.SIGINT, signal.default_int_handler)
