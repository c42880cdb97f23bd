// Checks resources that are not of Kubernetes itself against the schemas that their projects publish, as npm has them.
// The argument is a file with a JSON list of resources; the packages are in the folder of the second argument.
import { existsSync, readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , file, folder] = process.argv;
for (const resource of JSON.parse(readFileSync(file, "utf8"))) {
    const { apiVersion, kind, metadata } = resource;
    const isGateway = apiVersion.startsWith("gateway.networking.k8s.io/");
    // A TCPRoute is of v1 since Gateway API 1.6, and the fields are the same as in v1alpha2, which the package has.
    const published = kind === "TCPRoute" ? "gateway.networking.k8s.io/v1alpha2" : apiVersion;
    const models = `${folder}/node_modules/@kubernetes-models/${isGateway ? "gateway-api" : "prometheus-operator"}`;
    const [module] = ["mjs", "js"].map((end) => `${models}/${published}/${kind}.${end}`).filter(existsSync);
    const model = (await import(pathToFileURL(module)))[kind];
    try {
        new model({ ...resource, apiVersion: published }).validate();
    } catch (error) {
        console.error(`${kind} ${metadata.name}: ${error.message}`);
        process.exitCode = 1;
    }
}
