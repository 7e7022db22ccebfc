//! The mirror API as bytes: converts requests and responses to and from the model.
//!
//! Protocol details are those of StackState's page "Mirroring telemetry" (4.0 to 5.1).

use http::HeaderName;

mod details;
mod field;
mod metric_body;
mod point_numbers;
pub mod points;
pub mod request;
pub mod response;
pub mod timeless;
mod usual;

/// The header with which a mirror authenticates itself.
pub const API_KEY_HEADER: HeaderName = HeaderName::from_static("x-mirror-api-key");
