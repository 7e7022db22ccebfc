//! Heliostat.
pub mod aggregate;
pub mod demo;
pub mod model;
pub mod wire;
