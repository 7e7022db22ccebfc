//! The pure parts of the commands: what is typed and what is shown.

pub mod time;
pub mod view;
