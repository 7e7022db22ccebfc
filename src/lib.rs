//! Heliostat.
pub mod aggregate;
pub mod model;
pub mod wire;
