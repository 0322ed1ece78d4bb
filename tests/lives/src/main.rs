//! Lives in a virtual machine: `work` lives them until somebody cuts the power, `check` looks
//! whether everything is there.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Parser, Subcommand};
use futures::future::try_join_all;
use larder_lives::{Book, Caller, Ledger, Marks, World, check, live};

const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Where {
    /// The driver's socket
    #[arg(long)]
    socket: PathBuf,
    /// For staging and targets
    #[arg(long)]
    folder: PathBuf,
    /// `loop` or `dir`
    #[arg(long)]
    backend: String,
    /// The pool has a trash
    #[arg(long)]
    trash: bool,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lives until the end of the machine
    Work {
        #[command(flatten)]
        place: Where,
        #[arg(long, default_value_t = 3)]
        clients: usize,
        /// The disk for the marks
        #[arg(long)]
        disk: PathBuf,
        /// Where on it they begin
        #[arg(long)]
        from: u64,
    },
    /// Compares with a ledger
    Check {
        #[command(flatten)]
        place: Where,
        /// A file of events
        #[arg(long)]
        ledger: PathBuf,
    },
}

impl Where {
    fn world(self, book: Book) -> Result<World> {
        Ok(World {
            caller: Caller::new(&self.socket, PATIENCE)?,
            book,
            folder: self.folder,
            images: self.backend == "loop",
            trash: self.trash,
            grows_ext4: true,
            seed: self.seed,
        })
    }
}

/// Waits for a driver that starts.
async fn ready(world: &World) -> Result<()> {
    for _ in 0..1200 {
        if world.caller.is_ready().await {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("the driver does not get ready")
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Work { place, clients, disk, from } => {
            let world = place.world(Book::marked(Marks::new(&disk, from)?))?;
            ready(&world).await?;
            let next = AtomicU64::new(0);
            let client = async || -> Result<()> {
                loop {
                    live(&world, next.fetch_add(1, Ordering::Relaxed)).await?;
                }
            };
            try_join_all((0..clients).map(|_| client())).await?;
        }
        Command::Check { place, ledger } => {
            let text = std::fs::read_to_string(&ledger)?;
            let events: Vec<_> = text.lines().map(str::parse).collect::<Result<_>>()?;
            let world = place.world(Book::default())?;
            *world.book.ledger() = Ledger::of(&events)?;
            ready(&world).await?;
            check(&world).await.context("after the cut")?;
            ensure!(world.caller.volumes().await?.is_empty(), "volumes are left");
        }
    }
    Ok(())
}
