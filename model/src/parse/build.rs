//! The `build` section.

use super::decode::{Fields, string};
use super::keys::{BUILD, BUILD_CARGO, BUILD_COMMAND, BUILD_IMAGE, BUILD_PREBUILT};
use super::problems::Problems;
use super::tree::Node;
use crate::definition::{Build, CargoBuild};
use crate::target::TargetTriple;
use std::path::PathBuf;

#[derive(Clone, Copy)]
enum Type {
    Cargo,
    Prebuilt,
    Command,
    Image,
}

const TYPES: [(&str, Type); 4] =
    [("cargo", Type::Cargo), ("prebuilt", Type::Prebuilt), ("command", Type::Command), ("image", Type::Image)];

impl Type {
    fn name(self) -> &'static str {
        TYPES[self as usize].0
    }

    fn keys(self) -> &'static [&'static str] {
        match self {
            Type::Cargo => BUILD_CARGO,
            Type::Prebuilt => BUILD_PREBUILT,
            Type::Command => BUILD_COMMAND,
            Type::Image => BUILD_IMAGE,
        }
    }
}

pub fn build(node: Option<&Node>, problems: &mut Problems) -> Build {
    let Some(fields) = node.and_then(|n| Fields::open(n, "`build`", BUILD, problems)) else { return unwritten() };
    // With a misspelt type nobody knows which keys belong.
    let Ok(kind) = fields.choice("type", &TYPES, problems) else { return unwritten() };
    let kind = kind.unwrap_or(Type::Cargo);
    refuse_foreign(&fields, kind, problems);
    let targets = targets(&fields, problems);
    match kind {
        Type::Cargo => cargo(&fields, targets, problems),
        Type::Prebuilt => prebuilt(&fields, targets, problems),
        Type::Command => Build::Command {
            run: fields.required("run", problems).unwrap_or_default(),
            inputs: fields.texts("inputs", problems),
            output: fields.required("output", problems).unwrap_or_default().into(),
            targets,
        },
        Type::Image => Build::Image { image: fields.required("image", problems).unwrap_or_default() },
    }
}

/// `cargo` with nothing said.
fn unwritten() -> Build {
    Build::Cargo(CargoBuild {
        manifest_dir: PathBuf::from("."),
        default_features: true,
        profile: "release".into(),
        ..CargoBuild::default()
    })
}

fn cargo(fields: &Fields<'_>, targets: Vec<TargetTriple>, problems: &mut Problems) -> Build {
    Build::Cargo(CargoBuild {
        manifest_dir: fields.path("manifest_dir", problems).unwrap_or_else(|| PathBuf::from(".")),
        package: fields.text("package", problems),
        bin: fields.text("bin", problems),
        features: fields.texts("features", problems),
        default_features: fields.bool("default_features", problems).unwrap_or(true),
        profile: fields.text("profile", problems).unwrap_or_else(|| "release".into()),
        locked: fields.bool("locked", problems).unwrap_or(false),
        targets,
    })
}

fn prebuilt(fields: &Fields<'_>, targets: Vec<TargetTriple>, problems: &mut Problems) -> Build {
    let path = fields.required("path", problems);
    if let (Some(path), Some(node)) = (&path, fields.get("path"))
        && targets.len() > 1
        && !path.contains("{target}")
    {
        let hint = Some("put `{target}` into it where the triple stands".to_owned());
        problems.add(node.place, "`path` is the same for several targets", hint);
    }
    Build::Prebuilt { path: path.unwrap_or_default().into(), targets }
}

/// A key that belongs to another build type.
fn refuse_foreign(fields: &Fields<'_>, kind: Type, problems: &mut Problems) {
    for name in BUILD.iter().filter(|k| **k != "type" && !kind.keys().contains(k)) {
        if let Some((key, _)) = fields.entry(name) {
            let message = format!("`{name}` does not belong to `type: {}`", kind.name());
            problems.add(key.place, message, Some(format!("it takes {}", kind.keys().join(", "))));
        }
    }
}

fn targets(fields: &Fields<'_>, problems: &mut Problems) -> Vec<TargetTriple> {
    if let (Some(_), Some((key, _))) = (fields.entry("target"), fields.entry("targets")) {
        let hint = "put all of them under `targets`".to_owned();
        problems.add(key.place, "`target` and `targets` cannot both stand", Some(hint));
    }
    let mut targets = Vec::new();
    for (name, node) in ["target", "targets"].iter().flat_map(|n| fields.list(n).iter().map(move |node| (n, node))) {
        let Some(text) = string(node, name, problems) else { continue };
        match TargetTriple::new(&text.text) {
            Ok(target) if targets.contains(&target) => {
                problems.add(node.place, format!("target `{}` stands twice", text.shown()), None);
            }
            Ok(target) => targets.push(target),
            Err(error) => problems.invalid(node.place, &text.shown(), &error),
        }
        if targets.len() > MOST_TARGETS {
            problems.add(node.place, format!("more than {MOST_TARGETS} targets"), None);
            break;
        }
    }
    targets
}

/// More than Rust has.
const MOST_TARGETS: usize = 400;
