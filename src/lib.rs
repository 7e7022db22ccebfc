//! Heliostat.
pub mod aggregate;
pub mod cli;
pub mod model;
pub mod wire;
