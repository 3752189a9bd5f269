//! `${VAR}`: variables of the environment in text.

use super::problems::Problems;
use super::tree::{Kind, Node, Place, Scalar, printable};

/// Most text that variables may fill in, bytes in all: one long variable named often is a bomb too.
const MAX_FILLED: usize = 4 << 20;

/// Where a variable comes from.
pub type Env<'e> = &'e dyn Fn(&str) -> Option<String>;

/// Fills variables into all text but that of shells and of `x-` keys.
pub fn interpolate(root: &mut Node, env: Env<'_>, problems: &mut Problems) {
    Filler { env, problems, filled: 0 }.walk(root, &[]);
}

/// Whether the text at a path stays as it is.
///
/// A shell expands variables itself, on the machine where it runs. Only these keys at their own places: a service's `env` may
/// well have a key called `run`.
fn stays(path: &[&str]) -> bool {
    match path {
        ["services", _, "build", "run"] => true,
        ["services", _, "deploy", "setup_commands"] => true,
        ["services", _, "deploy", "health", "exec"] => true,
        ["services" | "hosts", _]
        | ["mesh", "via" | "endpoints" | "addresses", _]
        | ["services", _, "vars", _, ..]
        | ["services", _, "deploy", "env", _, ..] => false,
        [.., key] => key.starts_with("x-"),
        [] => false,
    }
}

struct Filler<'e, 'p> {
    env: Env<'e>,
    problems: &'p mut Problems,
    filled: usize,
}

impl Filler<'_, '_> {
    fn walk(&mut self, node: &mut Node, path: &[&str]) {
        let place = node.place;
        match &mut node.kind {
            Kind::Scalar(scalar) if scalar.text.contains('$') => {
                if self.fill(scalar, place).is_none() {
                    node.kind = Kind::Broken;
                }
            }
            Kind::Null | Kind::Broken | Kind::Scalar(_) => {}
            Kind::List(items) => items.iter_mut().for_each(|item| self.walk(item, path)),
            Kind::Map(entries) => {
                for (key, value) in entries {
                    let mut deeper = path.to_vec();
                    deeper.push(&key.name);
                    if !stays(&deeper) {
                        self.walk(value, &deeper);
                    }
                }
            }
        }
    }

    /// `None` when something was wrong, which has then been told.
    fn fill(&mut self, scalar: &mut Scalar, place: Place) -> Option<()> {
        let mut result = String::new();
        let (mut named, mut broken) = (false, false);
        let mut rest = scalar.text.as_str();
        while let Some(at) = rest.find('$') {
            result.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                result.push('$');
                rest = after;
            } else if let Some(after) = rest.strip_prefix('{') {
                let Some(end) = after.find('}') else { return self.wrong(place, "`${` without `}`") };
                named = true;
                match self.variable(&after[..end], place) {
                    Some(value) => result.push_str(&value),
                    None => broken = true,
                }
                rest = &after[end + 1..];
            } else {
                result.push('$');
            }
        }
        result.push_str(rest);
        let written = std::mem::replace(&mut scalar.text, result);
        scalar.written = named.then(|| written.into());
        (!broken).then_some(())
    }

    fn wrong<T>(&mut self, place: Place, message: &str) -> Option<T> {
        self.problems.add(place, message, Some("write `$$` for a dollar sign".into()));
        None
    }

    /// The value of what stands between the braces.
    fn variable(&mut self, text: &str, place: Place) -> Option<String> {
        let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        let (name, rest) = text.split_at(end);
        let (default, complaint) = (rest.strip_prefix(":-"), rest.strip_prefix(":?"));
        let valid = !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit());
        if !valid || (!rest.is_empty() && default.is_none() && complaint.is_none()) {
            return self.wrong(place, &format!("`${{{}}}` names no variable", printable(text)));
        }
        if rest.contains("${") {
            return self.wrong(place, "a variable inside of another's default or message");
        }
        if self.filled > MAX_FILLED {
            return None;
        }
        // As in shells: with a colon, empty counts as not set.
        match (self.env)(name).filter(|v| rest.is_empty() || !v.is_empty()).or(default.map(str::to_owned)) {
            Some(value) => self.within_budget(value, place),
            None => self.unset(name, complaint, place),
        }
    }

    /// The value, or nothing once all of them are too long together.
    fn within_budget(&mut self, value: String, place: Place) -> Option<String> {
        self.filled += value.len();
        if self.filled <= MAX_FILLED {
            return Some(value);
        }
        self.problems.add(place, "variables fill in more than 4 MiB of text", None);
        None
    }

    fn unset<T>(&mut self, name: &str, complaint: Option<&str>, place: Place) -> Option<T> {
        let name = printable(name);
        match complaint {
            Some(complaint) => self.problems.add(place, format!("variable `{name}` is not set: {}", printable(complaint)), None),
            None => {
                let hint = format!("set it, or write `${{{name}:-default}}`");
                self.problems.add(place, format!("variable `{name}` is not set"), Some(hint));
            }
        }
        None
    }
}
