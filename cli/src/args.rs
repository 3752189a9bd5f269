//! The command line as types.

use clap::{Args, Parser, Subcommand, ValueEnum};
use roadie_deployer::Rollout;
use roadie_model::definition::{OnFailure, Strategy};
use std::ffi::OsString;
use std::path::PathBuf;

/// Packs services and runs them on any Linux box that has sshd.
///
/// One file, roadie.yaml, says what services there are, how each is built, where it runs and when it is healthy. roadie builds
/// and packs them, streams them to the hosts, switches, watches their health, and finds its way back when that fails. The hosts
/// need nothing but sshd.
#[derive(Debug, Parser)]
#[command(name = "roadie", version, after_help = AFTER_HELP, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Options of all verbs.
    #[command(flatten)]
    pub global: Global,
}

const AFTER_HELP: &str = "\
Examples:
  roadie demo                      see it all happen on this machine, nothing else needed
  roadie init && roadie check      write a roadie.yaml for this cargo workspace and check it
  roadie plan                      what a deploy would do, with diffs
  roadie deploy api --host edge-1  bring one service to one host
  roadie logs -f                   follow the logs of everything, merged

Exit codes:
  0 done or nothing to do    1 failed, nothing changed     2 usage or definition
  3 changes pending (plan)   4 unreachable or login        5 failed, rolled back, old release healthy
  6 failed, not restored     7 locked                      8 host cannot take the package
  9 package or host key not trusted                       10 contact lost, outcome unknown
 11 some hosts run the new release, others do not          70 a bug in roadie   130 interrupted safely";

/// Options of all verbs.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Definition file, also -f (but behind `logs`, -f follows) [default: roadie.yaml here or in a folder above]
    #[arg(long, global = true, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// Merge roadie.NAME.yaml over the definition
    #[arg(long, global = true, value_name = "NAME")]
    pub env: Option<String>,
    /// Only these hosts: a name, a wildcard or tag:NAME (repeatable)
    #[arg(long = "host", global = true, value_name = "HOST")]
    pub hosts: Vec<String>,
    /// Only these services: a name or a wildcard (repeatable)
    #[arg(long = "service", global = true, value_name = "SERVICE")]
    pub services: Vec<String>,
    /// Print JSON on standard output, and nothing else there
    #[arg(long, global = true)]
    pub json: bool,
    /// Answer yes to every question
    #[arg(short, long, global = true)]
    pub yes: bool,
    /// Work on at most N hosts at the same time
    #[arg(long, global = true, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=512))]
    pub max_concurrent: u16,
    /// Wait so long for the lock of another run: 30s, 15m
    #[arg(long, global = true, value_name = "TIME", value_parser = age, default_value = "0s")]
    pub lock_wait: u64,
    /// Learn unknown host keys instead of refusing them (changed keys are refused all the same)
    #[arg(long, global = true)]
    pub accept_new_host_keys: bool,
    /// Say on standard error what happens underneath
    #[arg(long, global = true)]
    pub debug: bool,
}

/// How a rollout takes the hosts, where it is not as the definition says.
#[derive(Debug, Clone, Default, Args)]
pub struct RolloutArgs {
    /// All hosts at once, one by one, or one first [default: the definition's]
    #[arg(long, value_enum)]
    pub strategy: Option<StrategyArg>,
    /// Begin no more hosts when more than N failed [default: the definition's, else 0]
    #[arg(long, value_name = "N")]
    pub max_failures: Option<u32>,
    /// What then becomes of the hosts that took the new release [default: the definition's, else hold]
    #[arg(long, value_enum)]
    pub on_failure: Option<OnFailureArg>,
    /// Leave out hosts that cannot be reached, instead of changing none
    #[arg(long)]
    pub skip_unreachable: bool,
    /// Send packages to one host, which passes them on to the others: for slow uplinks. Hosts have to reach each other, and the
    /// network between them sees what the packages hold
    #[arg(long)]
    pub pass_on: bool,
}

/// In what order hosts are taken.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StrategyArg {
    /// As many at once as --max-concurrent allows.
    All,
    /// One by one.
    Rolling,
    /// One first, then the others.
    Canary,
}

/// What becomes of the hosts that took a new release when too many others failed.
#[derive(Debug, Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum OnFailureArg {
    /// They stay on it.
    Hold,
    /// They go back to the release they were on.
    RollbackAll,
}

impl RolloutArgs {
    /// As the deployer takes it.
    pub fn policy(&self) -> Rollout {
        let strategy = self.strategy.map(|s| match s {
            StrategyArg::All => Strategy::All,
            StrategyArg::Rolling => Strategy::Rolling,
            StrategyArg::Canary => Strategy::Canary,
        });
        let on_failure = self.on_failure.map(|f| match f {
            OnFailureArg::Hold => OnFailure::Hold,
            OnFailureArg::RollbackAll => OnFailure::RollbackAll,
        });
        Rollout {
            strategy,
            max_failures: self.max_failures,
            on_failure,
            skip_unreachable: self.skip_unreachable,
            pass_on: self.pass_on,
        }
    }
}

/// Services named behind a verb.
#[derive(Debug, Clone, Args)]
pub struct Named {
    /// Services, or wildcards [default: all]
    #[arg(value_name = "SERVICE")]
    pub names: Vec<String>,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Write a commented roadie.yaml for the cargo workspace here
    Init,
    /// Check the definition and name every mistake in it
    Check,
    /// Build services and put their packages into the store
    Pack {
        /// Which services.
        #[command(flatten)]
        named: Named,
        /// Only this target triple (repeatable)
        #[arg(long, value_name = "TRIPLE")]
        target: Vec<String>,
        /// What a package is found again by: `build` asks the build tool, `inputs` takes the store's package for the same files,
        /// tools and variables without asking it
        #[arg(long, value_enum, default_value_t = CacheArg::Build)]
        cache: CacheArg,
        /// Build again elsewhere, and name the first difference
        #[arg(long)]
        verify: bool,
        /// Sign what was packed with this private key (OpenSSH's format, no passphrase)
        #[arg(long, value_name = "KEYFILE")]
        sign: Option<PathBuf>,
    },
    /// Say which targets can be built for here, by which tools, and what is missing
    Targets,
    /// Check everything that packing the services needs, before a build
    Doctor {
        /// Which services.
        #[command(flatten)]
        named: Named,
    },
    /// Look at the package store, sign and verify what is in it
    Packages {
        /// What to do there.
        #[command(subcommand)]
        verb: PackagesVerb,
    },
    /// Say what a deploy would do, with diffs; change nothing
    Plan {
        /// Which services.
        #[command(flatten)]
        named: Named,
        /// Exit with 3 when changes are pending
        #[arg(long)]
        detailed_exitcode: bool,
        /// Plan for this package of the store instead of packing
        #[arg(long, value_name = "ID")]
        package: Option<String>,
        /// Keep the plan in FILE, for `deploy --plan`
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Bring services to their hosts
    Deploy {
        /// Which services.
        #[command(flatten)]
        named: Named,
        /// The same as plan
        #[arg(long)]
        dry_run: bool,
        /// Switch without waiting for health
        #[arg(long)]
        skip_health_check: bool,
        /// Deploy this package of the store instead of packing
        #[arg(long, value_name = "ID")]
        package: Option<String>,
        /// Carry out this plan and no other: refused where the host or the definition moved since
        #[arg(long, value_name = "FILE", conflicts_with_all = ["package", "dry_run"])]
        plan: Option<PathBuf>,
        /// How the hosts are taken.
        #[command(flatten)]
        rollout: RolloutArgs,
    },
    /// Show what runs where
    Status(Named),
    /// Start services and wait until they are healthy
    Start(Named),
    /// Stop services; they stay installed
    Stop(Named),
    /// Restart services and wait until they are healthy
    Restart(Named),
    /// Read the logs of services, merged by time
    Logs {
        /// Which services.
        #[command(flatten)]
        named: Named,
        /// Keep following
        #[arg(short, long)]
        follow: bool,
        /// At most N of the newest lines per source [default: 100]
        #[arg(short = 'n', long, value_name = "N")]
        lines: Option<u32>,
        /// Not older than this: 90s, 10m, 2h
        #[arg(long, value_name = "AGE", value_parser = age)]
        since: Option<u64>,
        /// Only of this release (first digits of its id)
        #[arg(long, value_name = "RELEASE", value_parser = digits)]
        release: Option<String>,
    },
    /// Run a command on hosts, as the login user
    Exec {
        /// The command and its arguments, behind --
        #[arg(required = true, last = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Show the releases on each host
    Releases(Named),
    /// Return to an older release that was healthy
    Rollback {
        /// Which services.
        #[command(flatten)]
        named: Named,
        /// First digits of the release's id [default: the one before the current one]
        #[arg(long, value_name = "RELEASE", value_parser = digits)]
        to: Option<String>,
        /// How the hosts are taken.
        #[command(flatten)]
        rollout: RolloutArgs,
    },
    /// The private network between the hosts (WireGuard)
    Mesh {
        /// What to do there.
        #[command(subcommand)]
        verb: MeshVerb,
    },
    /// Write everything of a host's services (releases, records, journals) to standard output
    Backup {
        /// The host.
        #[arg(value_name = "HOST")]
        host: String,
    },
    /// Put a backup from standard input back on a host that does not have the services
    Restore {
        /// The host.
        #[arg(value_name = "HOST")]
        host: String,
    },
    /// Delete old releases; with --all remove services from their hosts
    Cleanup {
        /// Which services.
        #[command(flatten)]
        named: Named,
        /// Remove the services altogether: process, unit, releases, records
        #[arg(long)]
        all: bool,
    },
    /// Deploy an example service to a sandbox on this machine and tell the story
    Demo {
        /// Leave the sandbox host running and print commands to try
        #[arg(long)]
        keep: bool,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// What a package is found again by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CacheArg {
    /// What the build tool made.
    Build,
    /// What it is made from.
    Inputs,
}

/// What to do in the package store.
#[derive(Debug, Subcommand)]
pub enum PackagesVerb {
    /// List packages, newest first
    Ls,
    /// Show one package
    Show {
        /// First digits of its id.
        #[arg(value_name = "ID", value_parser = digits)]
        id: String,
    },
    /// Delete packages that are not needed: the longest unused first, never one that a deployment refers to
    Gc {
        /// Keep so many packages
        #[arg(long, value_name = "N")]
        keep: Option<usize>,
        /// Keep so many bytes of archives
        #[arg(long, value_name = "BYTES")]
        max_bytes: Option<u64>,
        /// Delete what was not used for so many days
        #[arg(long, value_name = "DAYS")]
        older_than: Option<u32>,
        /// Only say which
        #[arg(long)]
        dry_run: bool,
    },
    /// Verify packages against their ids, and against the signers that are allowed
    Verify {
        /// First digits of an id [default: all]
        #[arg(value_name = "ID", value_parser = digits)]
        id: Option<String>,
        /// Whose signatures count.
        #[command(flatten)]
        trust: TrustArgs,
    },
    /// Sign packages with an SSH key, so that others can tell who vouches for them
    Sign {
        /// First digits of ids [default: all]
        #[arg(value_name = "ID", value_parser = digits)]
        ids: Vec<String>,
        /// Private key in OpenSSH's format, without a passphrase
        #[arg(long, value_name = "FILE", required_unless_present = "agent", conflicts_with = "agent")]
        key: Option<PathBuf>,
        /// Sign through ssh-agent; with several keys in it name one: SHA256:... or a .pub file
        #[arg(long, value_name = "KEY", num_args = 0..=1, require_equals = true, default_missing_value = "")]
        agent: Option<String>,
    },
    /// Print what the binaries of a package were built from (CycloneDX)
    Sbom {
        /// First digits of its id.
        #[arg(value_name = "ID", value_parser = digits)]
        id: String,
    },
    /// Print how a package was made (in-toto, SLSA provenance)
    Provenance {
        /// First digits of its id.
        #[arg(value_name = "ID", value_parser = digits)]
        id: String,
    },
}

/// What to do with the mesh.
#[derive(Debug, Subcommand)]
pub enum MeshVerb {
    /// Show each host's addresses, engine and handshakes, and who reaches whom
    Show,
    /// Say what apply would do; change nothing
    Plan {
        /// Exit with 3 when changes are pending
        #[arg(long)]
        detailed_exitcode: bool,
    },
    /// Bring all hosts to what the definition wants (deploy of everything does so first)
    Apply {
        /// Leave out hosts that cannot be reached, instead of changing none
        #[arg(long)]
        skip_unreachable: bool,
    },
    /// Give hosts new keys
    Rotate {
        /// Which hosts.
        #[arg(required = true, value_name = "HOST")]
        names: Vec<String>,
    },
    /// Make all others forget hosts, then take the mesh off them
    Remove {
        /// Which hosts.
        #[arg(required = true, value_name = "HOST")]
        names: Vec<String>,
    },
    /// Return all hosts to an earlier mesh that was proven
    Rollback {
        /// First digits of its generation [default: the one before the current one]
        #[arg(long, value_name = "GENERATION", value_parser = digits)]
        to: Option<String>,
    },
}

/// Whose signatures count.
#[derive(Debug, Clone, Default, Args)]
pub struct TrustArgs {
    /// Require a signature of somebody in this file, as for ssh-keygen [default: ROADIE_ALLOWED_SIGNERS]
    #[arg(long, value_name = "FILE")]
    pub allowed_signers: Option<PathBuf>,
    /// Refuse the public keys in this file, one per line [default: ROADIE_REVOKED_SIGNERS]
    #[arg(long, value_name = "FILE")]
    pub revoked: Option<PathBuf>,
    /// Require that this principal signed
    #[arg(long, value_name = "PRINCIPAL")]
    pub identity: Option<String>,
}

/// Spells `-f FILE` out as `--file FILE` for every verb but `logs`, whose own `-f` everybody knows.
pub fn spell_out(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut result: Vec<OsString> = Vec::new();
    let (mut behind_logs, mut raw) = (false, false);
    for arg in args {
        let text = arg.to_str().unwrap_or_default().to_owned();
        raw |= text == "--";
        behind_logs |= text == "logs";
        let value = text.strip_prefix("-f").filter(|_| !raw && !behind_logs && !result.is_empty());
        match value {
            Some("") => result.push("--file".into()),
            Some(value) => result.push(format!("--file={}", value.trim_start_matches('=')).into()),
            None => result.push(arg),
        }
    }
    result
}

fn age(text: &str) -> Result<u64, String> {
    let split = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().map_err(|_| "a number and a unit: 90s, 10m, 2h, 1d".to_owned())?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err("a number and a unit: 90s, 10m, 2h, 1d".into()),
    };
    number.checked_mul(unit).filter(|s| *s < 1_000_000_000).ok_or_else(|| "too long ago".into())
}

fn digits(text: &str) -> Result<String, String> {
    let valid = (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if valid { Ok(text.to_owned()) } else { Err("4 to 64 hex digits".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_short_file_option_yields_to_following_logs() {
        let words = |line: &str| spell_out(line.split(' ').map(OsString::from)).join(" ".as_ref());
        assert_eq!(words("roadie -f x deploy -fy -- -f z"), "roadie --file x deploy --file=y -- -f z");
        assert_eq!(words("roadie -f x logs -fn 10"), "roadie --file x logs -fn 10");
    }

    #[test]
    fn ages_have_units() {
        assert_eq!((age("90s"), age("2h")), (Ok(90), Ok(7200)));
        assert!(age("5").is_err() && age("x").is_err());
    }
}
