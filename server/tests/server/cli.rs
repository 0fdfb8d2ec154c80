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
    for name in ["serve", "pull", "key", "project", "audit"] {
        let help = command.find_subcommand_mut(name).unwrap().render_help();
        insta::assert_snapshot!(format!("help_{name}"), help);
    }
}

#[test]
fn every_option_is_documented_with_its_default() {
    let page = include_str!("../../../docs/configuration.md");
    let mut missing = String::new();
    let mut command = Cli::command();
    command.build();
    for name in ["serve", "pull"] {
        let options = command.find_subcommand(name).unwrap().get_arguments();
        for option in options.filter(|option| !["help", "version"].contains(&option.get_id().as_str())) {
            let Some(env) = option.get_env().and_then(|env| env.to_str()) else {
                writeln!(missing, "{name}: {} has no environment variable", option.get_id()).unwrap();
                continue;
            };
            let row = page
                .lines()
                .find(|line| line.contains(&format!("`{env}`")))
                .unwrap_or("");
            let long = option
                .get_long()
                .map(|long| format!("`--{long}`"))
                .unwrap_or_default();
            let default = option
                .get_default_values()
                .first()
                .and_then(|value| value.to_str())
                .unwrap_or("");
            if row.is_empty() || !row.contains(&long) || !row.contains(default) {
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
        refused(&["--bind", "0.0.0.0:80"]),
        Error::RemoteBind { .. }
    ));
    assert!(matches!(
        refused(&["--bind", "[::]:80"]),
        Error::RemoteBind { .. }
    ));
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
