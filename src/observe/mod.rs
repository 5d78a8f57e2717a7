//! Counters and logging.
