//! Names: the sandbox's own files, and the forwarder.
use crate::harness::*;

cases! {
    names_of_the_gateway_resolve,
    hostname_and_files_of_names,
}

fn names_of_the_gateway_resolve() -> Result<(), Fault> {
    for name in ["host.tapline.internal", "host.docker.internal", "host.containers.internal"] {
        let said = probe(&[], &["resolve", name])?;
        holds(format!("{name}: {said}"), said.split(' ').any(|a| a == "10.0.2.2"))?;
    }
    Ok(())
}

fn hostname_and_files_of_names() -> Result<(), Fault> {
    let options = ["--hostname", "box", "--dns-search", "example.test", "--add-host", "db:10.9.8.7"];
    let resolv = probe(&options, &["print", "/etc/resolv.conf"])?;
    holds(
        format!("resolv.conf: {resolv}"),
        resolv.contains("nameserver 10.0.2.3") && resolv.contains("search example.test"),
    )?;
    same("hostname", probe(&options, &["print", "/proc/sys/kernel/hostname"])?.as_str(), "box")?;
    same("/etc/hostname", probe(&options, &["print", "/etc/hostname"])?.as_str(), "box")?;
    same("--add-host", probe(&options, &["resolve", "db"])?.as_str(), "10.9.8.7")
}
