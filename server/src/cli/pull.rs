//! `rempart pull`: a model from a hub into the store, and the list of the names it knows.

use std::io::Write as _;

use anyhow::bail;
use rempart_hub::catalogue;
use rempart_hub::progress::Terminal;
use rempart_hub::pull::{PullRequest, Token, pull};
use rempart_hub::reference::Reference;

use crate::config::PullArgs;

/// Pulls what was asked for, or lists what can be.
pub(super) fn run(args: &PullArgs) -> anyhow::Result<()> {
    if args.list {
        return list();
    }
    let Some(model) = &args.model else {
        bail!("name a model, or list the known ones with --list")
    };
    let request = args.request(Reference::parse(model)?)?;
    let pulled = pull(&request, &Terminal::new())?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} is in {}", pulled.name, pulled.dir.display())?;
    writeln!(out, "next: rempart serve {}", pulled.name)?;
    Ok(())
}

fn list() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for entry in catalogue::entries() {
        writeln!(out, "{:28} {} ({})", entry.name, entry.title, entry.licence)?;
    }
    Ok(())
}

impl PullArgs {
    fn request(&self, reference: Reference) -> anyhow::Result<PullRequest> {
        let mut request = PullRequest::new(reference, self.cache_path(), self.store.clone().path());
        request.name.clone_from(&self.name);
        request.force = self.force;
        request.offline = self.offline;
        if let Some(endpoint) = &self.endpoint {
            request.endpoint.clone_from(endpoint);
        }
        let token = self.token.as_ref().filter(|token| !token.0.trim().is_empty());
        request.token = token.map(|token| Token::new(&token.0)).transpose()?;
        Ok(request)
    }
}
