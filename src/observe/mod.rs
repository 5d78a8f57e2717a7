//! Counters and logging.
pub mod logging;
