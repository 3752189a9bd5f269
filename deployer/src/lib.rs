//! Observes hosts, runs plans, checks health, rolls out and back.
//!
//! [`Controller::run`] takes groups of work, wave by wave, and tells the story as [`roadie_model::event::Event`]s. It decides
//! nothing about content: that is `roadie_planner`'s part; and changes nothing on a host but through the host script
//! (`templates/host`), over a [`roadie_transport::Session`].

mod backup;
mod connect;
mod controller;
mod engine;
mod failure;
mod health;
mod logs;
mod mesh;
mod observe;
mod report;
mod request;
mod rollout;
mod run;
mod script;
mod shell;
mod stock;
mod sudo;

pub use connect::{Connector, SshConnector};
pub use controller::{Cancel, Controller, EventSink, Options, Rollout};
pub use failure::Failure;
pub use logs::{ExecResult, LogLine, LogQuery, LogSink};
pub use mesh::{MeshReport, MeshWork, PortAsked, Reach, Replaced};
pub use request::{Group, TaskReport, Verb};
pub use script::HOST_SCRIPT;
pub use stock::{NoStock, Stock};
