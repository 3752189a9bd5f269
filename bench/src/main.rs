//! What `ci/bench` needs beside programs that are there already.
//!
//! ```text
//!     bench relay --map PORT=HOST:22 ... [--delay-ms N] [--rate-mbit M] [--stats FILE] [--while-stdin]
//!     bench upload --host H --port P --user U --key K FILE REMOTE
//!     bench warm --file roadie.yaml --store FOLDER --package ID [--times N]
//!     bench sshds --count N --dir FOLDER
//! ```
//!
//! `relay` is a long link on this machine, port 0 takes a free one; `upload` sends one file as a deployment does; `warm` deploys
//! the same again and again over one kept session; `sshds` are hosts without machines. What they have to say is a line of JSON
//! each. With `--while-stdin`, and always for `sshds`, they end with their standard input: nobody leaves them behind.

#![expect(clippy::print_stdout, clippy::print_stderr, clippy::exit, reason = "a program for developers: it talks and exits")]

mod hosts;
mod link;
mod relay;
mod upload;
mod warm;

use std::path::PathBuf;
use std::time::Duration;

/// Words of a command line: `--name value` and what is left.
struct Args(Vec<String>);

impl Args {
    fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().position(|a| a == name).and_then(|i| self.0.get(i + 1)).map(String::as_str)
    }

    fn must(&self, name: &str) -> &str {
        self.value(name).unwrap_or_else(|| usage(&format!("{name} is missing")))
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> T {
        self.value(name).map_or(default, |v| v.parse().unwrap_or_else(|_| usage(&format!("{name}: `{v}` is no number"))))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.must(name).into()
    }
}

fn main() {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let args = Args(words.collect());
    let done = match verb.as_str() {
        "relay" => relay(&args),
        "upload" => block_on(upload::run(upload::Upload {
            host: args.must("--host").into(),
            port: args.number("--port", 22),
            user: args.must("--user").into(),
            key: args.path("--key"),
            file: args.0.iter().rev().nth(1).unwrap_or_else(|| usage("FILE is missing")).into(),
            remote: args.0.last().cloned().unwrap_or_default(),
        })),
        "warm" => block_on(warm::run(&warm::Warm {
            file: args.path("--file"),
            store: args.path("--store"),
            package: args.must("--package").into(),
            times: args.number("--times", 5),
        })),
        "sshds" => block_on(hosts::run(args.number("--count", 10), &args.path("--dir"))),
        _ => usage("which one?"),
    };
    if let Err(problem) = done {
        eprintln!("bench {verb}: {problem}");
        std::process::exit(1);
    }
}

fn usage(problem: &str) -> ! {
    eprintln!("bench: {problem}\nusage: bench relay | upload | warm | sshds, see the head of bench/src/main.rs");
    std::process::exit(2);
}

fn relay(args: &Args) -> Result<(), String> {
    let mut maps = Vec::new();
    let named = args.0.iter().position(|a| a == "--map").map_or(&[][..], |at| &args.0[at + 1..]);
    for word in named.iter().take_while(|w| !w.starts_with("--")) {
        let map = word.split_once('=').and_then(|(port, to)| Some((port.parse().ok()?, to.to_owned())));
        maps.push(map.unwrap_or_else(|| usage(&format!("`{word}` is not PORT=HOST:PORT"))));
    }
    if maps.is_empty() {
        usage("--map PORT=HOST:PORT ... is missing");
    }
    let rate: f64 = args.number("--rate-mbit", 0.0);
    let line = link::Line {
        delay: Duration::from_secs_f64(args.number("--delay-ms", 0.0) / 1000.0),
        bytes_per_second: (rate > 0.0).then_some(rate * 1e6 / 8.0),
    };
    let relay = relay::Relay::start(&maps, line, args.value("--stats").map(PathBuf::from).as_deref())?;
    println!("{}", serde_json::json!({ "ports": relay.ports() }));
    if args.0.iter().any(|a| a == "--while-stdin") {
        until_stdin_ends();
    } else {
        loop {
            std::thread::park();
        }
    }
    Ok(())
}

/// Whoever started this holds the other end, and lets go of it however it ends.
pub(crate) fn until_stdin_ends() {
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}

fn block_on(work: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    // As many threads as the real program has.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start: {e}"))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}
