//! One operation of the `loop` backend in a process of its own, without a server:
//! `operate ROOT create NAME FS|block SIZE`, `clone NAME SOURCE`, `cut SOURCE SNAPSHOT`,
//! `cut-group NAME SOURCE…`, `delete-group NAME SOURCE…`, `expand NAME SIZE`, `delete NAME`, `delete-snapshot NAME`, `connect NAME`, `disconnect NAME`.
//!
//! Tests run it to kill it: with `LARDER_CRASH_AT=N` in its environment it dies at its N-th step, as
//! by `kill -9`. `ROOT/pools/*` are the pools.
#![allow(clippy::unwrap_used, clippy::panic, reason = "this program is a part of the tests")]

mod ground;

use ground::{Ask, Driver, Ground};
use larder_model::{Backend, Bytes, Connect, Cx, Provision, Result, SnapshotId, VolumeId};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(first) = args.next() else { return ExitCode::from(64) };
    if first == "internal" {
        return larder_host::internal::main(args);
    }
    let args: Vec<String> = args.filter_map(|a| a.into_string().ok()).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let Ok(runtime) =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
    else {
        return ExitCode::FAILURE;
    };
    let done = runtime.block_on(async {
        let driver = Ground::at(first.into()).driver().await;
        let done = operate(&driver, &args).await;
        driver.backend.stop().await;
        done
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), fault.to_string().as_bytes());
            ExitCode::FAILURE
        }
    }
}

fn volume(name: &str) -> VolumeId {
    VolumeId::new("default".parse().unwrap(), name.parse().unwrap())
}

async fn operate(driver: &Driver, args: &[&str]) -> Result<()> {
    match *args {
        ["create", name, "block", size] => {
            driver.create(&Ask::block(name, size.parse()?)).await.map(drop)
        }
        ["create", name, fs, size] => {
            driver.create(&Ask::mount(name, fs, size.parse()?)).await.map(drop)
        }
        ["clone", name, source] => {
            let ask = Ask::mount(name, "", Bytes::ZERO).clone_of(&volume(source));
            driver.create(&ask).await.map(drop)
        }
        ["cut", source, name] => driver.snapshot(&volume(source), name).await.map(drop),
        ["expand", name, size] => driver.expand(&volume(name), size.parse()?).await.map(drop),
        ["delete", name] => driver.delete(&volume(name)).await,
        ["delete-snapshot", name] => {
            let id = SnapshotId::new("default".parse()?, name.parse()?);
            driver.delete_snapshot(&id).await
        }
        ["cut-group", name, ..] => ground::cut_group(
            driver,
            name,
            &args[2..].iter().map(|v| volume(v)).collect::<Vec<_>>(),
        )
        .await
        .map(drop),
        ["delete-group", name, ..] => {
            let volumes: Vec<_> = args[2..].iter().map(|v| volume(v)).collect();
            ground::delete_group(driver, name, &volumes).await
        }
        ["connect", name] => {
            let volume = driver.backend.get_volume(&volume(name)).await?;
            driver.block(&volume).await.map(drop)
        }
        ["disconnect", name] => driver.backend.disconnect(&volume(name), None, &Cx::new()).await,
        _ => Err(larder_model::Fault::invalid("understand the arguments")),
    }
}
