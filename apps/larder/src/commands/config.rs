//! `larder config …`

use crate::{cli, config, exit::WrongConfig, output};
use anyhow::Result;
use std::path::Path;

/// Runs a configuration command.
pub(crate) fn run(command: cli::Config) -> Result<()> {
    match command {
        cli::Config::Check { config } => check(&config),
        cli::Config::Show { config } => {
            let settings = config::load(&config).map_err(|f| WrongConfig(f.to_string()))?;
            output::value(output::Format::Yaml, &settings)
        }
    }
}

fn check(path: &Path) -> Result<()> {
    let settings = config::load(path).map_err(|f| WrongConfig(f.to_string()))?;
    let problems = config::check(&settings);
    for problem in &problems {
        output::line(problem.to_string())?;
    }
    let fatal = problems.iter().filter(|p| p.fatal).count();
    if fatal > 0 {
        return Err(WrongConfig(format!("accept {}: {fatal} errors", path.display())).into());
    }
    let pools: usize = settings.drivers.iter().map(|d| d.pool_names().count()).sum();
    output::line(format!(
        "{}: {} drivers, {pools} pools: ok",
        path.display(),
        settings.drivers.len()
    ))
}
