//! Why sudo did not let us in, and the line that would.

use crate::failure::Failure;
use bytes::Bytes;
use roadie_model::outcome::Outcome;
use roadie_transport::Session;
use std::sync::Arc;

/// What is asked of a host whose sudo said no: who we are, where its shell is, and what sudo does allow.
const ASK: &str = "id -un; PATH=/usr/sbin:/usr/bin:/sbin:/bin command -v sh; sudo -n -l 2>&1";

/// Most bytes of its answer that are read.
const MAX_ANSWER: usize = 16 << 10;

/// A failure of the shell, with the exact line for sudoers when sudo is the cause.
pub async fn explain(session: &Arc<dyn Session>, failure: Failure) -> Failure {
    if failure.outcome != Outcome::Refused || !failure.causes.iter().any(|c| c.contains("sudo")) {
        return failure;
    }
    let command = format!("exec sh -c {}", roadie_model::sh::quote(ASK));
    let Ok(answer) = session.run(&command, Bytes::new(), MAX_ANSWER).await else { return failure };
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let mut lines = text.lines().map(crate::shell::sanitise);
    let (Some(user), Some(sh)) = (lines.next(), lines.next()) else { return failure };
    advise(failure, &user, &sh, &lines.collect::<Vec<_>>())
}

fn advise(failure: Failure, user: &str, sh: &str, listed: &[String]) -> Failure {
    let said = failure.causes.join(" ");
    let elsewhere = "log in as root, or set `scope: user`";
    if said.contains("not found") {
        return Failure { problem: "there is no sudo on the host".into(), ..failure }.hint(format!("install it, {elsewhere}"));
    }
    let (problem, line) = if said.contains("tty") {
        ("sudo wants a terminal, and there is none".to_owned(), format!("Defaults:{user} !requiretty"))
    } else {
        (format!("sudo does not let `{user}` run {sh} without a password"), format!("{user} ALL=(root) NOPASSWD: {sh}"))
    };
    let mut causes = failure.causes.clone();
    let allowed = listed.iter().map(|l| l.trim()).filter(|l| l.starts_with('('));
    causes.extend(allowed.map(|l| format!("sudo allows `{user}`: {l}")));
    Failure { problem, causes, ..failure }.hint(format!("add to /etc/sudoers.d/roadie: `{line}`; or {elsewhere}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advised(said: &str, listed: &[&str]) -> String {
        let failure = Failure { causes: vec![said.into()], ..Failure::new(Outcome::Refused, "no") };
        let listed: Vec<String> = listed.iter().map(|l| (*l).to_owned()).collect();
        let f = advise(failure, "deploy", "/usr/bin/sh", &listed);
        format!("{} | {} | {}", f.problem, f.hint.unwrap_or_default(), f.causes.join(" | "))
    }

    #[test]
    fn each_refusal_of_sudo_has_its_line() {
        let password = advised("sudo: a password is required", &["User deploy may run:", "    (root) NOPASSWD: /usr/bin/apt"]);
        assert!(password.contains("`deploy ALL=(root) NOPASSWD: /usr/bin/sh`"), "{password}");
        assert!(password.contains("sudo allows `deploy`: (root) NOPASSWD: /usr/bin/apt"), "{password}");
        let tty = advised("sudo: sorry, you must have a tty to run sudo", &[]);
        assert!(tty.contains("`Defaults:deploy !requiretty`"), "{tty}");
        let none = advised("sh: 1: exec: sudo: not found", &[]);
        assert!(none.starts_with("there is no sudo on the host | install it"), "{none}");
    }
}
