//! The mirror API and the Prometheus API as bytes: requests and responses to and from the model.
//! Pure.
//!
//! Facts of the mirror protocol are those of StackState's page "Mirroring telemetry" (4.0 to 5.1).

pub mod admin;
pub mod encoding;
mod field;
pub mod json;
pub mod number;
pub mod promapi;
pub mod request;
pub mod response;
pub mod telemetry;
