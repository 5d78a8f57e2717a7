//! Logging, and captures of frames.
pub mod capture;
pub mod logfile;
pub mod logging;
