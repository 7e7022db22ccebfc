//! Heliostat.
pub mod adapters;
pub mod aggregate;
pub mod clock;
pub mod config;
pub mod model;
pub mod telemetry;
pub mod wire;
