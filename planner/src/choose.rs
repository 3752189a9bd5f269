//! Which of the packages runs on a host, if any.

use roadie_model::facts::HostFacts;
use roadie_model::package::{Package, Requires};
use roadie_model::plan::Refusal;

/// Picks the package for the host: the first, in the order given, whose architecture and C library the host has.
///
/// # Errors
/// [`Refusal`] with the reason for the package that came closest, so that the message names something to change.
pub fn choose_package<'a>(packages: &'a [Package], facts: &HostFacts) -> Result<&'a Package, Refusal> {
    let mut closest: Option<Refusal> = None;
    for package in packages {
        match fits(package, facts) {
            Ok(()) => return Ok(package),
            Err((rank, refusal)) => {
                if closest.is_none() || rank > 0 {
                    closest = Some(refusal);
                }
            }
        }
    }
    Err(closest.unwrap_or_else(|| Refusal {
        problem: "no package was built for it".into(),
        hint: "name a target under `build:` in the definition".into(),
    }))
}

/// Says why a package does not run on a host; a higher rank is closer to running.
fn fits(package: &Package, facts: &HostFacts) -> Result<(), (u8, Refusal)> {
    let requires = &package.metadata.requires;
    let target = &package.metadata.target;
    if !requires.arch.is_empty() && !target.runs_on(&facts.machine) {
        let machine = facts.machine.as_str();
        let problem = match machine {
            "" => format!("the package is built for {}, the host is an architecture that it does not name", target.arch()),
            machine => format!("the package is built for {}, the host is {machine}", target.arch()),
        };
        let hint = match machine {
            "" => "`uname -m` says nothing there".to_owned(),
            machine => format!("add a target for {machine} under `build:`, for example `{machine}-unknown-linux-gnu`"),
        };
        return Err((0, Refusal { problem, hint }));
    }
    if let Some(needed) = &requires.glibc_min {
        let Some(present) = &facts.glibc else {
            return Err((
                1,
                Refusal {
                    problem: format!("it needs glibc {needed}, the host has another C library"),
                    hint: format!("build for {}-unknown-linux-musl", target.arch()),
                },
            ));
        };
        if version(present) < version(needed) {
            return Err((
                1,
                Refusal {
                    problem: format!("it needs glibc {needed}, the host has {present}{}", newer_symbols(requires, present)),
                    hint: format!(
                        "set `target: {}.{present}`, or build for {}-unknown-linux-musl",
                        target.triple(),
                        target.arch()
                    ),
                },
            ));
        }
    }
    if requires.page_align > 0 && facts.page_size > requires.page_align {
        let problem =
            format!("its segments are aligned to {} bytes, the host's pages have {}", requires.page_align, facts.page_size);
        return Err((2, Refusal { problem, hint: "link it with `-C link-arg=-zmax-page-size=65536`".into() }));
    }
    let lacks = |name: &String| facts.lacks.contains(name);
    if let Some(interpreter) = requires.interpreter.as_ref().filter(|i| lacks(i)) {
        let problem = format!("the program interpreter {interpreter} is not there");
        return Err((2, Refusal { problem, hint: format!("build for {}-unknown-linux-musl", target.arch()) }));
    }
    let missing: Vec<&str> = requires.sonames.iter().filter(|s| lacks(s)).map(String::as_str).collect();
    if !missing.is_empty() {
        let problem = format!("it needs the shared libraries {}, which are not there", missing.join(", "));
        return Err((
            2,
            Refusal { problem, hint: "install them there (in `setup_commands` is too late), or link statically".into() },
        ));
    }
    Ok(())
}

/// Numeric parts of a version, for comparison: 2.4 is older than 2.17.
/// The symbols that the host's glibc lacks, as far as the package names them.
fn newer_symbols(requires: &Requires, present: &str) -> String {
    let newer = requires.glibc_symbols.iter().filter(|(v, _)| version(v) > version(present));
    let names: Vec<String> = newer.flat_map(|(v, names)| names.iter().map(move |n| format!("{n}@GLIBC_{v}"))).collect();
    if names.is_empty() { String::new() } else { format!(" (it uses {})", names.join(", ")) }
}

fn version(text: &str) -> Vec<u32> {
    text.split('.').map(|part| part.parse().unwrap_or(0)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version("2.4") < version("2.17"));
        assert!(version("2.36") >= version("2.36"));
    }
}
