//! Finds what systemd would ignore or refuse in a unit, on machines without systemd too.

use super::directives::{Directive, TABLE, Values, boolean};
use super::syntax::{Kind, Line, lines};
use std::collections::BTreeSet;
use std::fmt;

/// What a unit without mistakes needs and lacks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Lint {
    /// The first systemd that knows everything the service cannot do without; 0 when all do.
    pub systemd_min: u32,
    /// What is allowed and still worth a look.
    pub warnings: Vec<String>,
    /// What a systemd of that version ignores while the service runs on, less protected or limited. Newest first.
    pub ignored_before: Vec<(u32, &'static str)>,
}

/// A mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where, from 1.
    pub line: usize,
    /// What.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

/// Checks the text of a unit, a template or not. What a template decides is not looked at.
///
/// # Errors
/// Every [`Problem`] in it.
pub fn lint(text: &str) -> Result<Lint, Vec<Problem>> {
    let mut check = Check::default();
    check.characters(text);
    for line in lines(text) {
        check.line(line);
    }
    check.whole();
    if !check.problems.is_empty() {
        check.problems.sort_by_key(|p| p.line);
        return Err(check.problems);
    }
    let least = check.least;
    let mut ignored: Vec<_> = check.ignored.into_iter().filter(|(version, _)| *version > least).collect();
    ignored.reverse();
    Ok(Lint { systemd_min: least, warnings: check.warnings, ignored_before: ignored })
}

/// The section that lines are in.
#[derive(Debug, Default, PartialEq, Eq)]
enum In {
    /// None yet.
    #[default]
    Nothing,
    /// One that systemd knows.
    Known(&'static str),
    /// One that nobody checks: an `X-` one, one that the template names, or one that was told already.
    Free,
}

#[derive(Debug, Default)]
struct Check {
    section: In,
    least: u32,
    problems: Vec<Problem>,
    warnings: Vec<String>,
    ignored: BTreeSet<(u32, &'static str)>,
    /// Lines that can become anything.
    computed: bool,
    service_at: Option<usize>,
    starts: bool,
    installs: bool,
}

impl Check {
    fn problem(&mut self, line: usize, text: String) {
        self.problems.push(Problem { line, text });
    }

    fn characters(&mut self, text: &str) {
        for (index, line) in text.lines().enumerate() {
            if line.chars().any(|c| c.is_control() && c != '\t') {
                self.problem(index + 1, "it has a control character".into());
            }
            let trimmed = line.trim_end();
            if trimmed.len() < line.len() && trimmed.ends_with('\\') && !trimmed.trim_start().starts_with(['#', ';']) {
                self.warnings.push(format!("line {}: blanks behind the `\\`: the next line does not belong to it", index + 1));
            }
        }
    }

    fn line(&mut self, line: Line) {
        let number = line.number;
        match line.kind {
            Kind::Section(name) => self.enter(number, &name),
            Kind::Setting { key, value, computed } => self.setting(number, &key, &value, computed),
            Kind::Computed => {
                self.computed = true;
                self.warnings.push(format!("line {number}: the template decides what it says, it is not checked"));
            }
            Kind::Stray(text) => {
                let text = match text.starts_with('[') {
                    true => format!("`{}` lacks its `]`", short(&text)),
                    false => format!("`{}` is neither a section nor `Name=value`", short(&text)),
                };
                self.problem(number, text);
            }
        }
    }

    fn enter(&mut self, line: usize, name: &str) {
        self.section = match TABLE.sections.get_key_value(name) {
            Some((known, _)) => In::Known(known),
            None => In::Free,
        };
        if name == "Service" {
            self.service_at.get_or_insert(line);
        }
        if self.section == In::Free && !name.starts_with("X-") {
            let like = suggestion(name, TABLE.sections.keys().copied());
            self.problem(line, format!("a service has no section [{}]{like}", short(name)));
        }
    }

    fn setting(&mut self, line: usize, key: &str, value: &str, computed: bool) {
        let section = match self.section {
            In::Free => return,
            In::Nothing => return self.problem(line, format!("`{}=` stands before the first section", short(key))),
            In::Known(section) => section,
        };
        if key.starts_with("X-") {
            return;
        }
        let Some(directive) = TABLE.get(section, key) else {
            let text = unknown(section, key);
            return self.problem(line, text);
        };
        self.starts |= key == "ExecStart" || key == "ExecStop" || key == "SuccessAction";
        self.installs |= section == "Install";
        if directive.old {
            self.warnings.push(format!("line {line}: `{key}=` is an old form, see systemd.directives(7) for its successor"));
        }
        // An empty value takes back what was set before.
        if value.is_empty() {
            return;
        }
        if boolean(value) != Some(false) || !TABLE.values(directive).is_some_and(|v| v.booleans) {
            self.needs(directive.since, directive.hard, directive.name);
        }
        if let Some(values) = TABLE.values(directive).filter(|_| !computed) {
            self.value(line, directive, values, value);
        }
    }

    fn value(&mut self, line: usize, directive: &Directive, values: &Values, value: &str) {
        // Of lists only the group names are a closed set.
        let list = values.words.first().is_some_and(|w| w.text.starts_with('@'));
        let words = value.strip_prefix('~').unwrap_or(value).split_whitespace().filter(|w| w.starts_with('@'));
        let words: Vec<&str> = if list { words.map(|w| w.split(':').next().unwrap_or(w)).collect() } else { vec![value] };
        for word in words {
            match values.find(word) {
                Ok(Some(word)) => self.needs(word.since, word.hard, directive.name),
                Ok(None) => {}
                Err(()) => {
                    let told = values.told();
                    let like = suggestion(word, told.iter().copied());
                    let takes = if list || told.len() > 12 { String::new() } else { format!(", it takes {}", told.join(", ")) };
                    self.problem(line, format!("`{}=` does not take `{}`{takes}{like}", directive.name, short(word)));
                }
            }
        }
    }

    fn needs(&mut self, since: u32, hard: bool, name: &'static str) {
        if hard {
            self.least = self.least.max(since);
        } else if since > 0 {
            self.ignored.insert((since, name));
        }
    }

    fn whole(&mut self) {
        if self.computed {
            return;
        }
        if !self.starts && self.problems.is_empty() {
            self.problem(self.service_at.unwrap_or(1), "without `ExecStart=` in [Service] it starts nothing".into());
        }
        if !self.installs {
            self.warnings.push("without `WantedBy=` in [Install] the service is not started at boot".into());
        }
    }
}

/// Says what a name that `section` does not have may be.
fn unknown(section: &str, key: &str) -> String {
    let elsewhere = TABLE.sections.iter().find(|(_, known)| known.contains_key(key));
    if let Some((other, _)) = elsewhere {
        return format!("`{key}=` belongs into [{other}], not [{section}]");
    }
    let here = TABLE.sections.get(section).into_iter().flat_map(|known| known.keys().copied());
    let near = nearest(key, here).or_else(|| nearest(key, TABLE.sections.values().flat_map(|known| known.keys().copied())));
    format!("[{section}] knows no `{}=`{}", short(key), near.map_or(String::new(), |k| format!("; did you mean `{k}=`?")))
}

/// `; did you mean ...?` when one of `known` is near.
fn suggestion<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> String {
    nearest(written, known).map_or(String::new(), |k| format!("; did you mean `{k}`?"))
}

fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    if written.len() > 64 {
        return None;
    }
    let lower = written.to_ascii_lowercase();
    let far = |k: &str| strsim::osa_distance(&lower, &k.to_ascii_lowercase());
    known.map(|k| (far(k), k)).min().filter(|(far, k)| *far <= (k.len() / 4).clamp(1, 4)).map(|(_, k)| k)
}

/// Enough of a text to know it again.
fn short(text: &str) -> String {
    let mut short: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    if text.chars().nth(60).is_some() {
        short.push_str("...");
    }
    short
}
