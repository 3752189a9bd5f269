//! How work ends, and the exit code that says so.

use serde::{Deserialize, Serialize};

/// How work on one host ended, as a class that a program can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Done, or nothing to do.
    Done,
    /// Failed, and nothing in service was changed.
    FailedUnchanged,
    /// Wrong usage or a wrong definition.
    Usage,
    /// `plan --detailed-exitcode`: changes are pending.
    ChangesPending,
    /// The host could not be reached, or did not let us in.
    Unreachable,
    /// Failed; the old release is back and confirmed healthy (or, on a first deploy, the host is as before).
    RolledBack,
    /// Failed, and the way back failed too.
    NotRestored,
    /// Another run holds the lock.
    Locked,
    /// The host cannot take the package; nothing was sent.
    Refused,
    /// A package or a host key is not what it should be.
    Integrity,
    /// Contact was lost; the host's journal knows the rest.
    Unknown,
    /// Over several hosts: some run the new release, others do not.
    Mixed,
    /// A bug in roadie.
    Bug,
    /// Interrupted, and safely so.
    Interrupted,
}

impl Outcome {
    /// All classes, for documentation and tests.
    pub const ALL: [Outcome; 14] = [
        Outcome::Done,
        Outcome::FailedUnchanged,
        Outcome::Usage,
        Outcome::ChangesPending,
        Outcome::Unreachable,
        Outcome::RolledBack,
        Outcome::NotRestored,
        Outcome::Locked,
        Outcome::Refused,
        Outcome::Integrity,
        Outcome::Unknown,
        Outcome::Mixed,
        Outcome::Bug,
        Outcome::Interrupted,
    ];

    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::FailedUnchanged => 1,
            Outcome::Usage => 2,
            Outcome::ChangesPending => 3,
            Outcome::Unreachable => 4,
            Outcome::RolledBack => 5,
            Outcome::NotRestored => 6,
            Outcome::Locked => 7,
            Outcome::Refused => 8,
            Outcome::Integrity => 9,
            Outcome::Unknown => 10,
            Outcome::Mixed => 11,
            Outcome::Bug => 70,
            Outcome::Interrupted => 130,
        }
    }

    /// What the class means, for `--help` and reports.
    pub fn meaning(self) -> &'static str {
        match self {
            Outcome::Done => "done, or nothing to do",
            Outcome::FailedUnchanged => "failed, nothing changed",
            Outcome::Usage => "wrong usage or definition",
            Outcome::ChangesPending => "plan --detailed-exitcode: changes are pending",
            Outcome::Unreachable => "host unreachable or login refused",
            Outcome::RolledBack => "failed, rolled back, old release confirmed healthy",
            Outcome::NotRestored => "failed and not restored",
            Outcome::Locked => "another run holds the lock",
            Outcome::Refused => "the host cannot take the package (nothing was sent)",
            Outcome::Integrity => "package or host key not trusted",
            Outcome::Unknown => "contact lost, outcome unknown",
            Outcome::Mixed => "some hosts run the new release, others do not",
            Outcome::Bug => "a bug in roadie",
            Outcome::Interrupted => "interrupted safely",
        }
    }

    /// Order from harmless to grave, for the worst of several hosts.
    fn gravity(self) -> u8 {
        match self {
            Outcome::Done => 0,
            Outcome::ChangesPending => 1,
            Outcome::Interrupted => 2,
            Outcome::FailedUnchanged => 3,
            Outcome::Refused => 4,
            Outcome::Locked => 5,
            Outcome::Unreachable => 6,
            Outcome::Usage => 7,
            Outcome::Integrity => 8,
            Outcome::RolledBack => 9,
            Outcome::Mixed => 10,
            Outcome::Unknown => 11,
            Outcome::NotRestored => 12,
            Outcome::Bug => 13,
        }
    }

    /// The one outcome of several hosts: [`Outcome::Mixed`] where a change reached some of them only, otherwise the worst.
    ///
    /// `changes` says whether the work was meant to leave all hosts on one release (deploy, rollback); reading or stopping
    /// cannot end mixed.
    pub fn of_fleet(outcomes: &[Outcome], changes: bool) -> Outcome {
        let worst = outcomes.iter().copied().max_by_key(|o| o.gravity()).unwrap_or(Outcome::Done);
        let done = outcomes.contains(&Outcome::Done);
        if changes && done && worst.gravity() > Outcome::ChangesPending.gravity() { Outcome::Mixed } else { worst }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Outcome::*;

    #[test]
    fn exit_codes_are_distinct_and_documented() {
        let mut codes: Vec<u8> = Outcome::ALL.iter().map(|o| o.exit_code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Outcome::ALL.len());
    }

    #[test]
    fn a_fleet_ends_mixed_only_when_a_change_reached_some() {
        assert_eq!(Outcome::of_fleet(&[Done, Done], true), Done);
        assert_eq!(Outcome::of_fleet(&[Done, Unreachable], true), Mixed);
        assert_eq!(Outcome::of_fleet(&[Done, Unreachable], false), Unreachable);
        assert_eq!(Outcome::of_fleet(&[RolledBack, NotRestored], true), NotRestored);
        assert_eq!(Outcome::of_fleet(&[], true), Done);
    }
}
