//! Counters and logging.
pub mod logfile;
pub mod logging;
