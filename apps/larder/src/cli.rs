//! The command line: what there is, and its help.

use crate::{
    config::ServeFlags, controllers::ControllersFlags, kubectl::Kubectl, manifests::ManifestsFlags,
    output::Format,
};
use clap::{Args, Parser, Subcommand, ValueHint};
use larder_csi::Endpoint;
use larder_model::{Bytes, FsType, Period};
use std::path::PathBuf;

/// Container storage in one binary.
///
/// Serves CSI drivers to Kubernetes and other orchestrators, and manages the same volumes on a bare
/// Linux host.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXIT_CODES: &str = "Exit status: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 exists with other \
properties; 5 in use or not possible in this state; 6 no space or size not possible; 7 not reachable or \
busy, try again; 8 doctor found something, kubectl why found something stuck, or adopt left something \
out; 64 wrong configuration.";

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve CSI drivers until told to stop.
    Serve(ServeFlags),
    /// Run the Kubernetes controllers for any CSI driver behind a socket: its volumes are made for
    /// claims, attached, grown, changed, and deleted.
    ///
    /// Takes the place of external-provisioner, external-attacher and external-resizer; takes their
    /// flags.
    #[command(args_override_self = true)]
    Controllers(Box<ControllersFlags>),
    /// Create, mount, grow and delete volumes.
    #[command(subcommand, visible_alias = "vol")]
    Volume(Volume),
    /// Create, list and delete snapshots.
    #[command(subcommand, visible_alias = "snap")]
    Snapshot(Snapshot),
    /// List, restore and remove for good what was deleted, in pools that keep it for a while.
    #[command(subcommand)]
    Trash(Trash),
    /// List and initialise pools.
    #[command(subcommand)]
    Pool(Pool),
    /// Ask a driver what it is and can do.
    #[command(subcommand)]
    Driver(Driver),
    /// Check and show the configuration.
    #[command(subcommand)]
    Config(Config),
    /// Find what is left over, lost or about to go wrong; explain it, and mend what is surely over.
    ///
    /// Looks only, and works beside a running driver. Exit status 8 when something was found.
    Doctor(Doctor),
    /// List the volumes of a pool from its directory alone, and print PersistentVolumes for them.
    ///
    /// For when configuration, node records or cluster are lost. Changes nothing. Exit status 8 when
    /// something in the pool cannot be used as a volume.
    Adopt(Adopt),
    /// Print the objects that run Larder in a Kubernetes cluster, as its Helm chart would make them.
    Manifests(ManifestsFlags),
    /// Look whether a cluster still has PersistentVolumes of drivers. Exit status 5 when it has.
    ///
    /// The chart asks this before it is uninstalled.
    CanUninstall(CanUninstall),
    /// Look at the storage of a Kubernetes cluster, of any CSI driver: why something is stuck, which
    /// volumes there are, everything for a report of a fault.
    ///
    /// The same as `kubectl larder`, where this program is in the PATH as kubectl-larder.
    #[command(subcommand)]
    Kubectl(Kubectl),
    /// Show in 15 seconds what Larder does, on real volumes, leaving nothing behind.
    Demo(Demo),
    /// Print a completion script.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages.
    Man {
        /// The folder that gets them.
        #[arg(value_hint = ValueHint::DirPath)]
        folder: PathBuf,
    },
    /// Helpers that Larder starts by itself.
    #[command(hide = true, disable_help_flag = true)]
    Internal {
        /// The helper and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// Which driver a command talks to.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Driver")]
pub(crate) struct Target {
    /// Configuration file.
    #[arg(long, env = "LARDER_CONFIG", default_value = crate::config::DEFAULT_PATH, value_hint = ValueHint::FilePath)]
    pub(crate) config: PathBuf,
    /// Driver, where the configuration has several.
    #[arg(long, env = "LARDER_DRIVER", value_name = "NAME")]
    pub(crate) driver: Option<String>,
    /// Talk to this CSI socket (any driver's) instead.
    #[arg(long, value_name = "ENDPOINT", conflicts_with = "driver")]
    pub(crate) socket: Option<Endpoint>,
    /// Give up after so many seconds. The work itself goes on in the serving process; where there is
    /// none, repeating the command finishes it.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) timeout: u32,
}

/// How a command prints.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// Volume commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Volume {
    /// Create a volume; repeating it returns the same one.
    Create(CreateVolume),
    /// List volumes.
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Show a volume: properties, where it is mounted, health, limits and whether they hold.
    Show {
        /// Name or id (POOL/NAME).
        volume: String,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Grow a volume, also while it is mounted.
    Expand {
        /// Name or id (POOL/NAME).
        volume: String,
        /// The new size, as in 20Gi.
        #[arg(long, value_parser = parse_size)]
        size: Bytes,
        /// Passphrase of an encrypted volume: a file, or - for standard input. Asked for where it is
        /// left out.
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Change what can be changed while a volume is in use: its limits.
    Modify(ModifyVolume),
    /// Mount a volume (a raw block volume appears as a device file).
    Mount {
        /// Name or id (POOL/NAME).
        volume: String,
        /// Where; its parent must exist.
        #[arg(value_hint = ValueHint::AnyPath)]
        path: PathBuf,
        /// Nothing may be written through this path. Where it is the volume's first, the volume is not
        /// written to at all: nothing is formatted, checked or replayed, and every further path must be
        /// read-only, too.
        #[arg(long)]
        read_only: bool,
        /// Present the volume as a raw block device.
        #[arg(long)]
        block: bool,
        /// Mount options.
        #[arg(long = "option", short = 'O', value_name = "OPTION", value_delimiter = ',')]
        options: Vec<String>,
        /// Passphrase of an encrypted volume: a file, or - for standard input. Asked for where it is
        /// left out.
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Replace the passphrase of an encrypted volume, also while it is mounted with `volume mount`.
    RotateKey {
        /// Name or id (POOL/NAME).
        volume: String,
        /// The passphrase it has: a file, or - for standard input. Asked for where it is left out.
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        old_passphrase_file: Option<PathBuf>,
        /// The passphrase it shall have: a file, or - for standard input. Asked for where it is left
        /// out.
        #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
        passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Unmount a volume from a path, or from everywhere it was mounted with `volume mount`.
    #[command(visible_alias = "umount")]
    Unmount {
        /// Name, id (POOL/NAME), or the path it is mounted at (which starts with / or .).
        volume: String,
        /// Only there.
        #[arg(value_hint = ValueHint::AnyPath)]
        path: Option<PathBuf>,
        /// Also where what is mounted is the last that has the volume's data.
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Delete a volume and its data.
    #[command(visible_alias = "delete")]
    Rm {
        /// Names or ids (POOL/NAME).
        #[arg(required = true)]
        volumes: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
}

/// `volume create`.
#[derive(Debug, Args)]
pub(crate) struct CreateVolume {
    /// Its name.
    pub(crate) name: String,
    /// Its size, as in 10Gi; the driver's default where it is left out.
    #[arg(long, value_parser = parse_size)]
    pub(crate) size: Option<Bytes>,
    /// The pool; the driver's default where it is left out.
    #[arg(long)]
    pub(crate) pool: Option<String>,
    /// File system.
    #[arg(long, value_parser = parse_fs, conflicts_with = "block", value_name = "ext4|xfs|btrfs")]
    pub(crate) fs: Option<FsType>,
    /// A raw block volume.
    #[arg(long)]
    pub(crate) block: bool,
    /// Clone a volume or restore a snapshot.
    #[arg(long, value_name = "VOLUME|VOLUME@SNAP|@SNAPSHOT-ID")]
    pub(crate) from: Option<String>,
    /// StorageClass parameters.
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) parameters: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `volume modify`.
#[derive(Debug, Args)]
pub(crate) struct ModifyVolume {
    /// Name or id (POOL/NAME).
    pub(crate) volume: String,
    /// Mutable parameters, as in maxReadBps=50Mi; 0 takes a limit away. Others stay as they are.
    #[arg(long = "param", value_name = "KEY=VALUE", value_parser = key_value, required = true)]
    pub(crate) parameters: Vec<(String, String)>,
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// Snapshot commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Snapshot {
    /// Cut a snapshot; repeating it returns the same one.
    Create {
        /// The volume, and the snapshot's name.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: String,
        /// VolumeSnapshotClass parameters.
        #[arg(long = "param", value_name = "KEY=VALUE", value_parser = key_value)]
        parameters: Vec<(String, String)>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// List snapshots.
    #[command(visible_alias = "list")]
    Ls {
        /// Only those of this volume.
        volume: Option<String>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Delete snapshots.
    #[command(visible_alias = "delete")]
    Rm {
        /// VOLUME@NAME or ids.
        #[arg(required = true, value_name = "VOLUME@NAME")]
        snapshots: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Snapshots of several volumes, cut at one moment.
    #[command(subcommand)]
    Group(SnapshotGroup),
    /// Show which bytes of a snapshot hold data, or differ from an earlier one.
    Blocks {
        /// The snapshot, or its id.
        #[arg(value_name = "VOLUME@NAME")]
        snapshot: String,
        /// Only what differs from this snapshot of the same volume.
        #[arg(long, value_name = "VOLUME@NAME")]
        since: Option<String>,
        /// Begin at this byte.
        #[arg(long, value_name = "BYTE", default_value_t = 0)]
        offset: u64,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
}

/// Commands on groups of snapshots.
#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotGroup {
    /// Cut snapshots of several volumes at one moment, all or none; repeating it returns the same.
    Create {
        /// The group's name.
        name: String,
        /// Names or ids (POOL/NAME) of the volumes.
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// List the snapshots of a group.
    #[command(visible_alias = "list")]
    Ls {
        /// The group's name or id (POOL/NAME).
        name: String,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Delete a group with all its snapshots.
    #[command(visible_alias = "delete")]
    Rm {
        /// The group's name or id (POOL/NAME).
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Trash commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Trash {
    /// List what is in the trash, the latest deletion first.
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Put something back, as it was.
    Restore {
        /// Its id in the trash.
        id: String,
        /// Another name; needed where its own is taken. Of a snapshot: VOLUME@NAME without the volume.
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Remove something for good, before its time.
    #[command(visible_alias = "delete")]
    Rm {
        /// Ids in the trash.
        #[arg(required = true)]
        ids: Vec<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Remove for good all that is in the trash of the driver.
    Empty {
        /// Only what was deleted at least so long ago, as in 12h, 30m or 7d.
        #[arg(long, value_name = "TIME", value_parser = parse_period)]
        older_than: Option<Period>,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
}

/// Pool commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Pool {
    /// List the configured pools.
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Make a directory a pool: writes its identity. Nothing is ever made or deleted in a directory
    /// without one.
    Init {
        /// The pool of the configuration.
        pool: Option<String>,
        /// A directory instead, with --backend.
        #[arg(long, value_hint = ValueHint::DirPath, requires = "backend", conflicts_with = "pool")]
        path: Option<PathBuf>,
        /// The kind of volumes that the directory is for.
        #[arg(long)]
        backend: Option<String>,
        /// Accept a directory that holds other files. They stay as they are.
        #[arg(long)]
        allow_non_empty: bool,
        #[command(flatten)]
        target: Target,
    },
}

/// Driver commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Driver {
    /// Services, capabilities and parameters.
    Info {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
}

/// Configuration commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check the whole file, and the pools it names. Exit status 64 when something is wrong.
    Check {
        /// Configuration file.
        #[arg(long, env = "LARDER_CONFIG", default_value = crate::config::DEFAULT_PATH, value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
    /// Print the configuration with every default filled in.
    Show {
        /// Configuration file.
        #[arg(long, env = "LARDER_CONFIG", default_value = crate::config::DEFAULT_PATH, value_hint = ValueHint::FilePath)]
        config: PathBuf,
    },
}

/// `doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Mend what can be mended without risk: prints the plan and asks first.
    #[arg(long)]
    pub(crate) fix: bool,
    /// Do not ask.
    #[arg(long, requires = "fix")]
    pub(crate) yes: bool,
    /// From how many percent taken on a pool counts as near full.
    #[arg(long, value_name = "PERCENT", default_value_t = 90, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub(crate) near_full: u8,
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `adopt`.
#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// The pool's directory. What is in its folder `static` is brought in, too.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) pool: PathBuf,
    /// The pool's name in the configuration: part of every volume's id.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub(crate) pool_name: larder_model::PoolName,
    /// The driver's CSI name [default: BACKEND.csi.larder.dev].
    #[arg(long, value_name = "NAME")]
    pub(crate) driver: Option<larder_model::DriverName>,
    /// The node that has the pool [default: the host name].
    #[arg(long, env = "NODE_NAME")]
    pub(crate) node: Option<larder_model::NodeName>,
    /// All nodes see the pool (`shared: true`).
    #[arg(long)]
    pub(crate) shared: bool,
    /// Put before the name of each PersistentVolume, where several pools have volumes of one name.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pub(crate) name_prefix: String,
    /// Output format: `yaml` prints PersistentVolumes to apply, `json` the list.
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `can-uninstall`.
#[derive(Debug, Args)]
pub(crate) struct CanUninstall {
    /// CSI names of the drivers.
    #[arg(value_name = "DRIVER")]
    pub(crate) drivers: Vec<larder_model::DriverName>,
    /// Look for pods with volumes of their own definition, too.
    #[arg(long)]
    pub(crate) inline: bool,
    /// A kubeconfig [default: $KUBECONFIG, or the pod's ServiceAccount].
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// `demo`.
#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep the demo's folder for a look.
    #[arg(long)]
    pub(crate) keep: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

fn parse_size(text: &str) -> Result<Bytes, String> {
    match text.parse() {
        Ok(Bytes::ZERO) => Err("a volume has a size above 0".to_owned()),
        Ok(size) => Ok(size),
        Err(fault) => Err(larder_model::Fault::to_string(&fault)),
    }
}

fn parse_period(text: &str) -> Result<Period, String> {
    text.parse().map_err(|fault: larder_model::Fault| fault.to_string())
}

fn parse_fs(text: &str) -> Result<FsType, String> {
    text.parse().map_err(|_| "supported are ext4, xfs and btrfs".to_owned())
}
