//! The mirror API and the Prometheus API as bytes: converts requests and responses to and from the
//! model. Pure.

pub mod admin;
pub mod encoding;
pub mod json;
pub mod mirror;
pub mod number;
pub mod point_writer;
pub mod prometheus;
