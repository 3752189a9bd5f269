//! `roadie`: the command line. The only crate that prints, exits and reads the environment.

mod args;
mod author;
mod backup;
mod demo;
mod doctor;
mod fleet;
mod mesh;
mod out;
mod packages;
mod project;
mod report;
mod saved;
mod stock;
mod trust;

use args::{Cli, Verb};
use clap::{CommandFactory as _, Parser as _};
use out::Fatal;
use roadie_model::outcome::Outcome;
use std::process::ExitCode;

fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|info| {
        out::note(&format!("{} this is a bug in roadie: {info}", out::red("error:")));
        out::note("hint: run it again with --debug and report what it says");
    }));
    let cli = match Cli::try_parse_from(args::spell_out(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { Outcome::Usage.exit_code() } else { 0 });
        }
    };
    if cli.global.debug {
        let filter = tracing_subscriber::EnvFilter::new("roadie=debug,roadie_deployer=debug,roadie_transport=debug,russh=info");
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| out::Log).init();
    }
    let json = cli.global.json;
    let run = std::panic::catch_unwind(move || run(cli));
    let code = match run {
        Ok(Ok(code)) => code,
        Ok(Err(fatal)) => {
            fatal.print(json);
            fatal.outcome.exit_code()
        }
        Err(_) => Outcome::Bug.exit_code(),
    };
    // Who did not get what was said does not know how it went.
    ExitCode::from(if out::finish() || code != 0 { code } else { Outcome::Unknown.exit_code() })
}

fn run(cli: Cli) -> Result<u8, Fatal> {
    match cli.verb {
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "roadie", &mut std::io::stdout());
            Ok(0)
        }
        Verb::Check => author::check(&cli.global),
        Verb::Init => author::init(&cli.global),
        verb => {
            // One thread for all that the hosts are told and say: to hand each packet from one to another costs more than what is done
            // with it.
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            let runtime = runtime.map_err(|e| Fatal::failed("cannot start").cause(e.to_string()))?;
            let code = runtime.block_on(runtime.spawn(async move { run_async(verb, &cli.global).await }));
            // As long as a signal is heard.
            out::finish();
            // Nothing that still runs is worth waiting for.
            runtime.shutdown_background();
            // A panic has said what is wrong.
            code.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
        }
    }
}

async fn run_async(verb: Verb, global: &args::Global) -> Result<u8, Fatal> {
    match verb {
        Verb::Pack { named, target, cache, verify, sign } => {
            packages::pack(
                global,
                &named.names,
                &target,
                packages::How { by_inputs: cache == args::CacheArg::Inputs, verify, sign },
            )
            .await
        }
        Verb::Targets => doctor::targets(global),
        Verb::Doctor { named } => doctor::doctor(global, &named.names),
        Verb::Packages { verb } => packages::packages(global, &verb),
        Verb::Demo { keep } => demo::run(global, keep).await,
        verb => fleet::run(verb, global).await,
    }
}
