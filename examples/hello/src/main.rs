//! A small real HTTP server that reports its version: the service of the demo and the tests. Standard library only.
//!
//! `--listen ADDR`, `--config FILE` (lines `key = "value"`), and the environment (`HELLO_LISTEN`, `HELLO_GREETING`,
//! `HELLO_VERSION`, `HELLO_UNHEALTHY=1`) set it up, later ones first. For tests of what supervises it: `--crash-after SECS`,
//! `--notify` (sd_notify), `--check` (asks a running one for its health and exits).

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

struct Settings {
    listen: String,
    greeting: String,
    version: String,
    healthy: bool,
    crash_after: Option<u64>,
    notify: bool,
    check: bool,
}

fn main() {
    let settings = match settings() {
        Ok(settings) => settings,
        Err(problem) => {
            eprintln!("hello: {problem}");
            std::process::exit(2);
        }
    };
    if settings.check {
        std::process::exit(i32::from(!answers_ok(&settings.listen)));
    }
    let listener = match TcpListener::bind(&settings.listen) {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("hello: cannot listen on {}: {e}", settings.listen);
            std::process::exit(1);
        }
    };
    log(&format!("hello {} listens on {}", settings.version, settings.listen));
    if settings.notify {
        ready();
    }
    if let Some(seconds) = settings.crash_after {
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(seconds));
            log("crashing as asked");
            std::process::exit(101);
        });
    }
    let settings = Arc::new(settings);
    for stream in listener.incoming().flatten() {
        let settings = settings.clone();
        std::thread::spawn(move || {
            // A client that goes away in the middle is no concern of ours.
            let _ = answer(stream, &settings);
        });
    }
}

fn log(line: &str) {
    let mut out = std::io::stdout().lock();
    // Nobody may be reading any more; the service goes on.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn settings() -> Result<Settings, String> {
    let mut args = std::env::args().skip(1);
    let mut file = HashMap::new();
    let mut settings = Settings {
        listen: String::new(),
        greeting: String::new(),
        version: String::new(),
        healthy: true,
        crash_after: None,
        notify: false,
        check: false,
    };
    let mut listen = None;
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--listen" => listen = Some(value()?),
            "--config" => file = read_config(&value()?)?,
            "--crash-after" => settings.crash_after = Some(value()?.parse().map_err(|_| "--crash-after needs seconds")?),
            "--notify" => settings.notify = true,
            "--check" => settings.check = true,
            other => return Err(format!("unknown argument {other}")),
        }
    }
    let get = |variable: &str, key: &str| std::env::var(variable).ok().or_else(|| file.get(key).cloned());
    settings.listen = listen.or_else(|| get("HELLO_LISTEN", "listen")).unwrap_or_else(|| "127.0.0.1:8080".into());
    settings.greeting = get("HELLO_GREETING", "greeting").unwrap_or_else(|| "hello".into());
    settings.version = get("HELLO_VERSION", "version").unwrap_or_else(|| env!("CARGO_PKG_VERSION").into());
    settings.healthy = get("HELLO_UNHEALTHY", "unhealthy").is_none_or(|v| v != "1" && v != "true");
    Ok(settings)
}

fn read_config(path: &str) -> Result<HashMap<String, String>, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"))?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    lines
        .map(|line| {
            let (key, value) = line.split_once('=').ok_or(format!("{path}: `{line}` is no setting"))?;
            Ok((key.trim().to_owned(), value.trim().trim_matches('"').to_owned()))
        })
        .collect()
}

/// Tells systemd that we are up (sd_notify(3)).
fn ready() {
    let Ok(socket) = std::env::var("NOTIFY_SOCKET") else { return };
    if let Ok(from) = std::os::unix::net::UnixDatagram::unbound() {
        let _ = from.send_to(b"READY=1", socket);
    }
}

fn answers_ok(address: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address) else { return false };
    let mut answer = String::new();
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.starts_with("HTTP/1.1 200")
}

fn answer(stream: TcpStream, settings: &Settings) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = String::new();
    reader.by_ref().take(8192).read_line(&mut request)?;
    let mut line = String::new();
    while reader.by_ref().take(8192).read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/");
    let (status, body) = match path {
        "/health" if settings.healthy => ("200 OK", "ok".to_owned()),
        "/health" => ("503 Service Unavailable", "not well".to_owned()),
        "/version" => ("200 OK", settings.version.clone()),
        "/" => ("200 OK", settings.greeting.clone()),
        _ => ("404 Not Found", "nothing here".to_owned()),
    };
    log(&format!("GET {path} {}", &status[..3]));
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}\n", body.len() + 1)?;
    stream.flush()
}
