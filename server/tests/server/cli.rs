//! The command line and its documentation.

use std::fmt::Write as _;

use clap::{CommandFactory as _, Parser as _};
use rempart::cli::{Cli, Command};
use rempart::config::Error;

use super::support::settings;

#[test]
fn help() {
    let mut command = Cli::command();
    insta::assert_snapshot!("help", command.render_help());
    command.build();
    for name in [
        "serve",
        "pull",
        "plan",
        "bench",
        "key",
        "project",
        "audit",
        "doctor",
        "support-bundle",
    ] {
        let help = command.find_subcommand_mut(name).unwrap().render_help();
        insta::assert_snapshot!(format!("help_{name}"), help);
    }
    for (name, below) in [("oidc", "fetch"), ("bench", "engine"), ("traces", "send")] {
        let command = command.find_subcommand_mut(name).unwrap();
        let help = command.find_subcommand_mut(below).unwrap().render_help();
        insta::assert_snapshot!(format!("help_{name}_{below}"), help);
    }
}

#[test]
fn every_option_is_documented_with_its_default() {
    let page = include_str!("../../../docs/configuration.md");
    let mut missing = String::new();
    let mut command = Cli::command();
    command.build();
    for name in ["serve", "pull", "oidc fetch"] {
        let typed = name
            .split(' ')
            .fold(&command, |command, name| command.find_subcommand(name).unwrap());
        let options = typed.get_arguments();
        for option in options.filter(|option| !["help", "version"].contains(&option.get_id().as_str())) {
            let Some(env) = option.get_env().and_then(|env| env.to_str()) else {
                writeln!(missing, "{name}: {} has no environment variable", option.get_id()).unwrap();
                continue;
            };
            let long = option
                .get_long()
                .map(|long| format!("`--{long}`"))
                .unwrap_or_default();
            let default = option
                .get_default_values()
                .first()
                .and_then(|value| value.to_str())
                .unwrap_or("");
            // Commands that share a variable have a row each.
            let variable = format!("`{env}`");
            let told = |row: &str| row.contains(&variable) && row.contains(&long) && row.contains(default);
            if !page.lines().any(told) {
                writeln!(missing, "{name}: {env} {long} {default}").unwrap();
            }
        }
    }
    assert_eq!(missing, "", "docs/configuration.md lacks these");
}

#[test]
fn switches_in_the_environment_take_the_words_that_other_tools_take() {
    for word in ["1", "0", "true", "false"] {
        let status = std::process::Command::new(env!("CARGO_BIN_EXE_rempart"))
            .args(["pull", "--list"])
            .env("HF_HUB_OFFLINE", word)
            .output()
            .unwrap()
            .status;
        assert!(status.success(), "HF_HUB_OFFLINE={word}");
    }
}

fn refused(arguments: &[&str]) -> Error {
    let all = ["rempart", "serve", "m"].iter().chain(arguments);
    match Cli::try_parse_from(all).unwrap().command {
        Command::Serve(args) => args.check().unwrap_err(),
        _ => unreachable!("the arguments say serve"),
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    assert!(matches!(
        refused(&["--allow-remote", "--admin-bind", "0.0.0.0:9090"]),
        Error::RemoteAdminBind { .. }
    ));
    assert!(matches!(
        refused(&["--admin-bind", "127.0.0.1:8080"]),
        Error::OneBind { .. }
    ));
    assert!(matches!(
        refused(&["--served-model-name", "a b"]),
        Error::ModelName { .. }
    ));
    assert!(matches!(refused(&["--block-size", "12"]), Error::BlockSize(12)));
    assert!(matches!(
        refused(&["--step-tokens-max", "8"]),
        Error::StepBelowSequences { .. }
    ));
    for option in [
        "--kv-cache-mib",
        "--memory-max-mib",
        "--threads",
        "--step-tokens-max",
        "--queue-requests-max",
        "--connections-max",
        "--connections-per-address-max",
    ] {
        for value in ["17592186044415", "18446744073709551615"] {
            let error = refused(&[option, value]).to_string();
            assert!(
                error.starts_with(option) && error.contains("more than the limit of"),
                "{error}"
            );
        }
    }
    assert!(matches!(
        refused(&["--allowed-host", "a:80"]),
        Error::AllowedHost { .. }
    ));
    assert!(Cli::try_parse_from(["rempart", "serve", "m", "--sequences-max", "0"]).is_err());
    assert!(Cli::try_parse_from(["rempart", "serve", "m", "--choices-max", "200"]).is_err());
    assert!(
        settings(&["--bind", "0.0.0.0:80", "--allow-remote"])
            .http
            .bind
            .port()
            == 80
    );
    assert!(settings(&["--bind", "[::1]:80"]).http.bind.is_ipv6());
    let admin = settings(&["--admin-bind", "127.0.0.1:9090"]).http.admin;
    assert!(admin.bind.is_some() && admin.hosts.is_some() && admin.idle_unload.is_none());
    assert_eq!(
        settings(&["--served-model-name", "a,b/c:1"]).model.served_names,
        ["a", "b/c:1"]
    );
}

const TLS: [&str; 4] = ["--tls-certificate", "c.pem", "--tls-key", "k.pem"];
const KEYS: [&str; 2] = ["--database", "rempart.db"];

#[test]
fn an_address_that_others_reach_needs_tls_and_keys() {
    for bind in ["0.0.0.0:80", "[::]:80", "10.0.0.7:80", "[::ffff:10.0.0.7]:80"] {
        let with = |more: &[&str]| refused(&[&["--bind", bind], more].concat()).to_string();
        let (keys, tls, both) = (with(&TLS), with(&KEYS), with(&[]));
        assert!(
            keys.contains("no keys: give --database, or") && keys.contains(bind),
            "{keys}"
        );
        assert!(
            tls.contains("no TLS: give --tls-certificate and --tls-key, or"),
            "{tls}"
        );
        assert!(both.contains("neither TLS nor keys: give --tls-certificate, --tls-key and --database, or"));
        for error in [keys, tls, both] {
            assert!(error.contains("--allow-remote"), "{error}");
        }
        let guarded = [&["--bind", bind], &TLS[..], &KEYS].concat();
        assert!(settings(&guarded).http.tls.is_some());
        for some in [&TLS[..], &KEYS, &[]] {
            settings(&[&["--bind", bind, "--allow-remote"], some].concat());
        }
    }
    settings(&["--bind", "[::ffff:127.0.0.1]:80"]);
    let authority = ["--tls-client-ca", "ca.pem"];
    let certified = [&["--bind", "0.0.0.0:80"], &TLS[..], &authority].concat();
    assert!(matches!(refused(&certified), Error::RemoteBind { .. }));
}

#[test]
fn half_of_tls_is_refused() {
    for (given, lacking) in [
        (&["--tls-certificate", "c"][..], "--tls-key:"),
        (&["--tls-key", "k"], "--tls-certificate:"),
        (&["--tls-client-ca", "a"], "--tls-certificate and --tls-key:"),
        (&["--tls-key", "k", "--tls-client-ca", "a"], "--tls-certificate:"),
        (&["--tls-certificate", "c", "--tls-client-ca", "a"], "--tls-key:"),
    ] {
        let error = refused(given).to_string();
        assert!(error.starts_with(given[0]), "{error}");
        let (_, rest) = error.split_once("without ").unwrap();
        assert!(rest.starts_with(lacking), "{error}");
    }
}
