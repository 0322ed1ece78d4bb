//! Larder's CSI services.
//!
//! A request comes in over a [`socket`] (or from this process, through a [`client::Client`]), passes
//! the [`layers`] that every call passes, is checked and turned into the engines' types, and the
//! engine's answer is turned back. Nothing here knows a backend, the operating system or Kubernetes.

pub mod authority;
pub mod client;
pub mod driver;
pub mod endpoint;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod layers;
mod registration;
mod reply;
mod request;
mod services;
pub mod socket;
pub mod status;

pub use client::Client;
pub use driver::{Driver, Limits, Settings};
pub use endpoint::Endpoint;
pub use registration::Registered;
pub use services::{SetLogLevel, State};
