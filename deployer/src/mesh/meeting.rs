//! Where hosts whose changes belong together wait for each other: none confirms before all can.

use roadie_model::id::HostName;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// So long a meeting lasts at most: no host's guard, armed after it began, acts before all have confirmed or none does.
const LONGEST: Duration = Duration::from_secs(16);

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
    deadline: Instant,
}

impl Meeting {
    /// `first` are those of `all` that nobody has to wait before.
    pub fn new(all: BTreeSet<HostName>, first: BTreeSet<HostName>) -> Self {
        Self { all, first, progress: watch::channel(Progress::default()).0, deadline: Instant::now() + LONGEST }
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

    /// Gives up on `work` when the meeting is over.
    ///
    /// # Errors
    /// That it is.
    pub async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        tokio::time::timeout_at(self.deadline, work).await.map_err(|_| format!("no answer within {LONGEST:.0?}"))
    }

    async fn wait(&self, done: impl Fn(&Progress) -> bool) -> Result<(), String> {
        let mut progress = self.progress.subscribe();
        let waiting = progress.wait_for(|p| p.failed.is_some() || done(p));
        match tokio::time::timeout_at(self.deadline, waiting).await {
            Ok(Ok(p)) => p.failed.clone().map_or(Ok(()), Err),
            // The sender is ours: it is there.
            Ok(Err(_)) => Err("the meeting is over".into()),
            Err(_) => Err(format!("not all hosts came as far within {LONGEST:.0?}")),
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
        let early = tokio::time::timeout(Duration::from_secs(5), meeting.all_applied()).await;
        assert!(early.is_err(), "b is missing");
        meeting.applied(&name("b"));
        meeting.all_applied().await.expect("both");
        meeting.fail(&name("b"), "no");
        meeting.fail(&name("a"), "later");
        assert_eq!(meeting.all_checked().await, Err("`b`: no".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_over_before_a_guard_acts() {
        let began = Instant::now();
        let meeting = Meeting::new([name("a"), name("b")].into(), BTreeSet::new());
        assert!(meeting.all_applied().await.is_err() && meeting.in_time(std::future::pending::<()>()).await.is_err());
        assert_eq!(began.elapsed().as_secs(), LONGEST.as_secs());
    }
}
