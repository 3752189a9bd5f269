//! Where hosts whose changes belong together wait for each other: none confirms before all can.

use roadie_model::id::HostName;
use std::collections::BTreeSet;
use tokio::sync::watch;

/// How far each host came.
#[derive(Debug, Default, Clone)]
struct Progress {
    applied: BTreeSet<HostName>,
    checked: BTreeSet<HostName>,
    failed: Option<String>,
}

/// A meeting of the hosts that are changed together.
#[derive(Debug)]
pub struct Meeting {
    all: BTreeSet<HostName>,
    /// Those that take part before the others: they learn new keys first.
    first: BTreeSet<HostName>,
    progress: watch::Sender<Progress>,
}

impl Meeting {
    /// `first` are those of `all` that nobody has to wait before.
    pub fn new(all: BTreeSet<HostName>, first: BTreeSet<HostName>) -> Self {
        Self { all, first, progress: watch::channel(Progress::default()).0 }
    }

    /// The new state is in force on `host`.
    pub fn applied(&self, host: &HostName) {
        self.progress.send_modify(|p| {
            p.applied.insert(host.clone());
        });
    }

    /// `host` was found to be as it should.
    pub fn checked(&self, host: &HostName) {
        self.progress.send_modify(|p| {
            p.checked.insert(host.clone());
        });
    }

    /// `host` cannot go on: nobody confirms. The first word counts.
    pub fn fail(&self, host: &HostName, why: &str) {
        self.progress.send_modify(|p| {
            p.failed.get_or_insert_with(|| format!("`{host}`: {why}"));
        });
    }

    /// Waits until those that go first have it in force.
    ///
    /// # Errors
    /// Which host failed, and why.
    pub async fn first_applied(&self) -> Result<(), String> {
        self.wait(|p| p.applied.is_superset(&self.first)).await
    }

    /// Waits until it is in force on all hosts.
    ///
    /// # Errors
    /// Which host failed, and why.
    pub async fn all_applied(&self) -> Result<(), String> {
        self.wait(|p| p.applied.is_superset(&self.all)).await
    }

    /// Waits until all hosts were found to be as they should.
    ///
    /// # Errors
    /// Which host failed, and why.
    pub async fn all_checked(&self) -> Result<(), String> {
        self.wait(|p| p.checked.is_superset(&self.all)).await
    }

    async fn wait(&self, done: impl Fn(&Progress) -> bool) -> Result<(), String> {
        let mut progress = self.progress.subscribe();
        match progress.wait_for(|p| p.failed.is_some() || done(p)).await {
            Ok(p) => p.failed.clone().map_or(Ok(()), Err),
            // The sender is ours: it is there.
            Err(_) => Err("the meeting is over".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> HostName {
        HostName::new(text).expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_goes_on_alone() {
        let meeting = Meeting::new([name("a"), name("b")].into(), [name("a")].into());
        meeting.applied(&name("a"));
        meeting.first_applied().await.expect("a is the first");
        let early = tokio::time::timeout(std::time::Duration::from_secs(60), meeting.all_applied()).await;
        assert!(early.is_err(), "b is missing");
        meeting.applied(&name("b"));
        meeting.all_applied().await.expect("both");
        meeting.fail(&name("b"), "no");
        meeting.fail(&name("a"), "later");
        assert_eq!(meeting.all_checked().await, Err("`b`: no".to_owned()));
    }
}
