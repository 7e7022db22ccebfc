//! Heliostat.
pub mod adapters;
pub mod aggregate;
pub mod cli;
pub mod clock;
pub mod config;
pub mod demo;
pub mod model;
pub mod telemetry;
pub mod upstream;
pub mod wire;
