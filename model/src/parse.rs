//! YAML in, [`crate::definition::Definition`] out, with every mistake named at once.
