declare module "*.css";
declare module "*.ipynb" {
  const notebook: unknown;
  export default notebook;
}
