//! Definitions and facts in, plans out. Only functions: no disk, network, clock, environment or randomness.
//!
//! A plan leaves nothing to choose: every step says what is done, when, and how it is taken back. Whatever has to be decided
//! about a host is decided here, where a table of facts can test it.

mod changes;
mod choose;
mod deploy;
mod mesh;
mod operate;
mod render;
mod saved;

pub use changes::changes;
pub use choose::choose_package;
pub use deploy::{Input, PlanError, plan_deploy, plan_rollback};
pub use mesh::{
    MeshHost, MeshInput, MeshPlan, MeshRefusal, SCRIPT as MESH_SCRIPT, check_mesh, departed, plan_mesh, plan_mesh_rollback,
    unmeasured,
};
pub use operate::{plan_cleanup, plan_remove, plan_restart, plan_start, plan_stop};
pub use render::{RenderError, render, service_root};
pub use saved::{Assumed, FORMAT as PLAN_FORMAT, SavedHost, SavedPlan, difference, save};
