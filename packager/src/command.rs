//! Services that another tool builds: make, go, zig, npm. It runs in a cleared environment, and only when what it reads changed.

use crate::members::Binary;
use crate::memo::{Digests, Memo};
use crate::{BuildEnv, PackError, PackEvent, Report};
use globset::{Glob, GlobSet, GlobSetBuilder};
use roadie_model::definition::Definition;
use roadie_model::target::TargetTriple;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::Command;

/// Variables that every build sees.
const ALWAYS: [&str; 5] = ["PATH", "HOME", "USER", "LANG", "TMPDIR"];

/// The section of the definition.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    pub run: &'a str,
    pub inputs: &'a [String],
    pub env: &'a [String],
    pub output: &'a Path,
}

/// What the last run was made from and what it made.
#[derive(Serialize, Deserialize)]
struct Last {
    inputs: String,
    output: String,
    digests: Digests,
}

/// Runs the command unless its inputs and its output are those of the last run.
pub async fn build(
    definition: &Definition,
    options: Options<'_>,
    target: &TargetTriple,
    env: &BuildEnv,
    memo: &Memo,
    report: Report<'_>,
) -> Result<Binary, PackError> {
    let output = definition.dir.join(options.output.to_string_lossy().replace("{target}", &target.to_string()));
    let key = format!("{} {target} {:?}", definition.dir.display(), (options.run, options.inputs, options.env, &output));
    let last: Option<Last> = memo.get("command", &key);
    let mut digests = last.as_ref().map(|l| l.digests.clone()).unwrap_or_default();
    let inputs = inputs(definition, options, target, env, &mut digests)?;
    let made = |digests: &mut Digests| digests.of(&output).map(|(sha256, _)| sha256).ok();
    let same =
        last.as_ref().is_some_and(|l| Some(&l.inputs) == inputs.as_ref() && Some(&l.output) == made(&mut digests).as_ref());
    if !same {
        run(definition, options, target, env, report).await?;
    }
    let Some(sha256) = made(&mut digests) else {
        let reason = "the command ended well and did not make it".to_owned();
        return Err(PackError::File { key: "build.output", path: output, reason });
    };
    if let Some(inputs) = inputs
        && (!same || digests.changed())
    {
        memo.put("command", &key, &Last { inputs, output: sha256, digests });
    }
    let name = output.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Binary { path: output, name, version: String::new() })
}

/// A digest over all that the command may read; `None` when nothing is declared.
fn inputs(
    definition: &Definition,
    options: Options<'_>,
    target: &TargetTriple,
    env: &BuildEnv,
    digests: &mut Digests,
) -> Result<Option<String>, PackError> {
    if options.inputs.is_empty() {
        return Ok(None);
    }
    let globs = globs(options.inputs)?;
    let mut files = Vec::new();
    walk(&definition.dir, &definition.dir, &globs, &mut files);
    files.sort();
    if files.is_empty() {
        let problem = format!("no file here is one of `build.inputs` ({})", options.inputs.join(", "));
        return Err(PackError::Choice { problem, hint: "globs are relative to the definition's folder: `src/**`".into() });
    }
    let mut hash = Sha256::new();
    hash.update(format!("{target}\n{}\n", options.run));
    for name in options.env {
        hash.update(format!("{name}={:?}\n", env.var(name)));
    }
    for file in &files {
        let failed = |e: std::io::Error| PackError::File { key: "build.inputs", path: file.clone(), reason: e.to_string() };
        hash.update(format!("{} {}\n", digests.of(file).map_err(failed)?.0, file.display()));
    }
    digests.keep(|path| files.iter().any(|f| f == path) || !path.starts_with(&definition.dir));
    Ok(Some(crate::archive::hex(&hash.finalize())))
}

fn globs(patterns: &[String]) -> Result<GlobSet, PackError> {
    let bad =
        |e: globset::Error| PackError::Choice { problem: format!("`build.inputs`: {e}"), hint: "write globs as `src/**`".into() };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(bad)?);
    }
    set.build().map_err(bad)
}

fn walk(root: &Path, folder: &Path, globs: &GlobSet, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            if entry.file_name() != ".git" {
                walk(root, &path, globs, found);
            }
        } else if path.strip_prefix(root).is_ok_and(|short| globs.is_match(short)) {
            found.push(path);
        }
    }
}

async fn run(
    definition: &Definition,
    options: Options<'_>,
    target: &TargetTriple,
    env: &BuildEnv,
    report: Report<'_>,
) -> Result<(), PackError> {
    report(PackEvent::Building { command: options.run.to_owned() });
    let mut command = Command::new("sh");
    command.args(["-c", options.run]).current_dir(&definition.dir).env_clear();
    for name in ALWAYS.iter().copied().chain(options.env.iter().map(String::as_str)) {
        if let Some(value) = env.var(name) {
            command.env(name, value);
        }
    }
    command.envs(&env.set).env("ROADIE_TARGET", target.to_string()).env("ROADIE_ARCH", target.arch());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let failed = |source| PackError::Tool { tool: "sh".into(), source };
    let mut child = command.spawn().map_err(failed)?;
    let (out, err) = tokio::join!(tell(child.stdout.take(), report), tell(child.stderr.take(), report));
    let status = child.wait().await.map_err(failed)?;
    if status.success() {
        return Ok(());
    }
    let output: Vec<String> = out.into_iter().chain(err).collect();
    let hint = match output.iter().any(|l| l.contains("not found")) {
        true => {
            "install what is named above; the command sees PATH, HOME, USER, LANG, TMPDIR and what `build.env` names".to_owned()
        }
        false => format!("it ended with {status}; its words are above"),
    };
    Err(PackError::Build { command: options.run.to_owned(), output, hint: Some(hint) })
}

/// Reports lines as they come; the last of them.
async fn tell(from: Option<impl AsyncRead + Unpin>, report: Report<'_>) -> Vec<String> {
    let mut last = Vec::new();
    let Some(from) = from else { return last };
    let mut lines = BufReader::new(from).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        report(PackEvent::BuildOutput { line: line.clone() });
        if last.len() >= 30 {
            last.remove(0);
        }
        last.push(line);
    }
    last
}
