//! The vocabulary of roadie: validated data, no I/O, no async, no runtime.
//!
//! Everything that two crates exchange is defined here: what is wanted ([`definition`]), what was built ([`package`]), what a
//! host has ([`facts`]), what will be done ([`plan`]), what happened ([`event`]) and how it ended ([`outcome`]). What must not
//! come in: file, network, process, clock or environment access. A value that needs one of them is passed in by the caller.

pub mod definition;
pub mod event;
pub mod facts;
pub mod id;
pub mod mesh;
pub mod outcome;
pub mod package;
pub mod parse;
pub mod plan;
pub mod sh;
pub mod target;
pub mod template;
