//! Compiles the protobuf files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "proto/tp/agent/v1/agent.proto",
        "proto/tp/local/v1/local.proto",
        "proto/tp/tunnel/v1/tunnel.proto",
    ];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::SmallBufferCodec")
        .type_attribute(
            ".tp.local.v1",
            "#[derive(serde::Serialize, serde::Deserialize)]",
        )
        .type_attribute(".tp.local.v1", "#[serde(rename_all = \"snake_case\")]")
        .bytes(".tp.agent.v1")
        .bytes(".tp.tunnel.v1")
        .btree_map(".tp.local.v1")
        // Their values are secrets.
        .skip_debug([
            ".tp.agent.v1.Control",
            ".tp.agent.v1.EnvironPart",
            ".tp.agent.v1.Welcome",
            ".tp.local.v1.EnvironmentResponse",
            ".tp.local.v1.NewFile",
            ".tp.local.v1.Shell",
            ".tp.tunnel.v1.EnvironmentResponse",
        ])
        .compile_fds(descriptors)?;

    Ok(())
}
